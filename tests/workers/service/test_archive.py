"""Many sounds as one ZIP file: what is in it, what is left out, who may have it and how much."""

import json
import os
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.service import archive
from audiofuse.workers.service.archive import LEFT_OUT, Taken, zipped

NOBODY = "6ba7b810-9dad-51d1-80b4-00c04fd430c8"
Bearer = Callable[[str], dict[str, str]]
Problem = Callable[[httpx.Response, int, str], str]


def _ids(client: TestClient) -> dict[str, str]:
    hits = client.get("/v1/search", params={"q": "a sound"}).json()["hits"]
    return {hit["key"]: hit["id"] for hit in hits}


def _unpacked(content: bytes) -> dict[str, bytes]:
    with ZipFile(BytesIO(content)) as file:
        assert file.testzip() is None
        return {name: file.read(name) for name in file.namelist()}


def test_sounds_come_with_their_sidecars(client: TestClient, bucket: Path) -> None:
    """Each is under its key and byte for byte as it is in the bucket; unknown ids are left out."""
    ids = _ids(client)
    wanted = [ids["music/gong.ogg"], ids["music/cowbell.flac"], NOBODY, ids["music/gong.ogg"]]
    answer = client.post("/v1/zip", json={"ids": wanted})
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == 'attachment; filename="sounds.zip"'
    expected = ("music/gong.ogg", "music/gong.json", "music/cowbell.flac")
    assert _unpacked(answer.content) == {key: (bucket / key).read_bytes() for key in expected}


def test_sidecars_with_new_labels_lose_nothing(client: TestClient, bucket: Path) -> None:
    """They are named as the bucket wants them, and keep all that a sidecar said besides."""
    ids = _ids(client)
    items = [
        {"id": ids["music/cowbell.flac"], "labels": ["Cowbell", "Domestic animals, pets"]},
        {"id": ids["music/gong.ogg"], "labels": ["Gong"]},
        {"id": NOBODY, "labels": ["Dog"]},
    ]
    inside = _unpacked(client.post("/v1/sidecars", json={"items": items}).content)
    told = {name: json.loads(content) for name, content in inside.items()}
    said = json.loads((bucket / "music/gong.json").read_text())
    assert told == {
        "music/cowbell.flac.json": {"labels": ["Cowbell", "Domestic animals, pets"]},
        "music/gong.ogg.json": said | {"labels": ["Gong"]},
    }
    assert client.post("/v1/sidecars", json={"items": items[2:]}).status_code == 404


def test_what_cannot_be_read_is_named_in_the_file(bucket: Path) -> None:
    """A sound that was deleted meanwhile is left out and told of, the rest is there."""
    taken = [
        Taken("music/gone.wav", 9, has_sidecar=False),
        Taken("music/gong.ogg", 9, has_sidecar=True),
    ]
    inside = _unpacked(b"".join(zipped(FolderStore(bucket), taken)))
    assert inside.keys() == {"music/gong.ogg", "music/gong.json", LEFT_OUT}
    assert inside[LEFT_OUT].startswith(b"music/gone.wav: ")


def test_only_sounds_and_their_sidecars_are_given(bucket: Path) -> None:
    """Whatever a payload says, no other file of the bucket or beside it leaves the service."""
    keys = ("secret.txt", "../sounds/secret.txt", "music/gong.json")
    taken = [Taken(key, 9, has_sidecar=True) for key in keys]
    inside = _unpacked(b"".join(zipped(FolderStore(bucket), taken)))
    assert inside.keys() == {LEFT_OUT}


def test_unpacking_leads_nowhere_else() -> None:
    """Keys that are no paths, as S3 allows them, become paths below the folder of the file."""
    assert archive._name("/a//../b\\..\\c.wav", ()) == "a/b/c.wav"
    assert archive._name("a//b.wav", {"a/b.wav": ""}) == "1/a/b.wav"


def test_files_of_before_1980_are_packed_and_another_program_reads_it(tmp_path: Path) -> None:
    """ZIP knows no earlier time; sounds of several chunks come whole."""
    sound = tmp_path / "bucket" / "long.wav"
    sound.parent.mkdir()
    sound.write_bytes(bytes(range(256)) * 3000)
    os.utime(sound, (0, 0))
    packed = tmp_path / "packed.zip"
    taken = [Taken("long.wav", 9, has_sidecar=False)]
    packed.write_bytes(b"".join(zipped(FolderStore(sound.parent), taken)))
    listed = subprocess.run(
        ["python3", "-m", "zipfile", "--test", packed], capture_output=True, text=True, check=True
    )
    assert "Done testing" in listed.stdout
    assert _unpacked(packed.read_bytes()) == {"long.wav": sound.read_bytes()}


def test_who_may_only_search_gets_no_sounds(
    open_to: Callable[..., TestClient],
    bucket: Path,
    problem: Problem,
    bearer: Callable[[str], dict[str, str]],
) -> None:
    """The file needs the scope by which sounds are heard; so does where they lie."""
    keys = SecretStr("me:of-the-test-0123456789,reader:words-only-0123456789:search")
    client = open_to(bucket=str(bucket), api_keys=keys)
    mine, theirs = bearer("of-the-test-0123456789"), bearer("words-only-0123456789")
    hit = client.get("/v1/search", params={"q": "gong"}, headers=mine).json()["hits"][0]
    assert hit["location"] == str(bucket / hit["key"])
    wanted = {"ids": [hit["id"]]}
    problem(client.post("/v1/zip", json=wanted, headers=theirs), 403, "not-allowed")
    assert client.post("/v1/zip", json=wanted, headers=mine).status_code == 200
    seen = client.get("/v1/search", params={"q": "gong"}, headers=theirs).json()["hits"][0]
    assert seen["location"] is None


def test_too_much_is_refused_before_it_is_sent(
    client: TestClient, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many items, too many bytes, and items that there are none of."""
    ids = list(_ids(client).values())
    problem(client.post("/v1/zip", json={"ids": []}), 422, "bad-question")
    problem(client.post("/v1/zip", json={"ids": ids * 300}), 422, "bad-question")
    problem(client.post("/v1/zip", json={"ids": [NOBODY]}), 404, "not-found")
    monkeypatch.setattr(archive, "MOST_BYTES", 10)
    assert "at most 10" in problem(client.post("/v1/zip", json={"ids": ids}), 413, "too-large")
