"""Put all files of a folder into the bucket, each under its path in it, and say how far it is.

    python deploy/upload.py FOLDER

Names that programs give to files while they write them are left out, and hidden ones. Needs the
right to write to the bucket of AUDIOFUSE_BUCKET, which no process of audiofuse has.
"""

import sys
from pathlib import Path

from rich.progress import track

from audiofuse.core.errors import AudiofuseError
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client, s3_errors
from audiofuse.core.storage.store import bucket_name
from audiofuse.core.storage.temporary import is_temporary


def upload(folder: Path, settings: Settings) -> None:
    """Upload; ``Unavailable`` if the bucket does not take a file."""
    bucket, s3 = bucket_name(settings), s3_client(settings)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    chosen = {key: path for key, path in files.items() if path.is_file() and is_meant(key)}
    for key, path in track(chosen.items(), "uploading", total=len(chosen)):
        with s3_errors(f"uploading {key} to s3://{bucket}", names_object=False):
            s3.upload_file(str(path), bucket, key)
    print(f"{len(chosen)} files are in s3://{bucket}")


def is_meant(key: str) -> bool:
    """Whether a file is one to upload: neither hidden nor still being written."""
    return not is_temporary(key) and not any(part.startswith(".") for part in key.split("/"))


if __name__ == "__main__":
    try:
        upload(Path(sys.argv[1]), Settings())
    except (AudiofuseError, OSError) as error:
        sys.exit(f"audiofuse: {error}")
