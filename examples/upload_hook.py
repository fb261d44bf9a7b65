"""A form's upload becomes a sound that is found seconds later.

    pip install fastapi uvicorn boto3 python-multipart
    UPLOADS=s3://sounds/uploads uvicorn upload_hook:app --port 8001
    curl -F sound=@rain.wav -F title="Rain on a roof" -F tags="rain, roof" http://127.0.0.1:8001/sounds

What a collection like Freesound does when somebody uploads. It needs nothing of audiofuse: the
bucket is the interface. UPLOADS may be a folder, too. Who may upload, your application says.
"""

import io
import json
import os
import re
import uuid
from pathlib import Path
from typing import Annotated, BinaryIO

import boto3
from fastapi import FastAPI, Form, HTTPException, UploadFile

MOST_BYTES = 256 * 1024**2
SOUNDS = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aif", ".aiff"}

app = FastAPI()


def put(name: str, content: BinaryIO) -> None:
    """Write an object into the bucket, or a file into the folder, all of it or nothing."""
    place = os.environ["UPLOADS"].rstrip("/")
    if place.startswith("s3://"):
        bucket, _, prefix = place.removeprefix("s3://").partition("/")
        boto3.client("s3").upload_fileobj(content, bucket, f"{prefix}/{name}".lstrip("/"))
        return
    written = Path(place, f".{name}.part")
    written.write_bytes(content.read())
    written.rename(Path(place, name))


@app.post("/sounds", status_code=201)
def upload(
    sound: UploadFile,
    title: Annotated[str, Form(max_length=200)],
    description: Annotated[str, Form(max_length=5000)] = "",
    tags: Annotated[str, Form(max_length=500)] = "",
) -> dict[str, str]:
    """Take a sound and its words; tell under which name it is kept."""
    given = Path(sound.filename or "")
    suffix = given.suffix.lower()
    if suffix not in SOUNDS:
        raise HTTPException(415, f"a sound is one of {', '.join(sorted(SOUNDS))}")
    if (sound.size or 0) > MOST_BYTES:
        raise HTTPException(413, f"a sound has at most {MOST_BYTES} bytes")
    plain = re.sub(r"[^\w-]+", "-", given.stem)[:80]
    name = f"{uuid.uuid4().hex[:8]}-{plain}{suffix}"  # two may have one name
    words = {
        "title": title, "description": description,
        "keywords": [tag.strip() for tag in tags.split(",") if tag.strip()],
    }  # fmt: skip
    # The sidecar first: when the sound's event comes, its words are there already.
    put(f"{name}.json", io.BytesIO(json.dumps(words).encode()))
    put(name, sound.file)
    return {"name": name}
