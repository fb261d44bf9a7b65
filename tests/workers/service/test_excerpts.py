"""Excerpts: a part of an item's sound, for those who may hear it."""

import io
import shutil
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from audiofuse.core.items import point_id
from audiofuse.core.storage.store import FolderStore

OpenTo = Callable[..., TestClient]
KEYS = {"Authorization": "Bearer a-long-key-of-ann"}


def _path(bucket: Path, key: str = "music/piano.wav") -> str:
    return f"/v1/items/{point_id(FolderStore(bucket).bucket, key)}/excerpt"


@pytest.fixture
def client(open_to: OpenTo, bucket: Path) -> TestClient:
    """Return a client of a service that has the bucket."""
    return open_to(bucket=str(bucket))


def _read(content: bytes) -> tuple[wave._wave_params, np.ndarray]:
    with wave.open(io.BytesIO(content)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        return file.getparams(), samples.reshape(-1, file.getnchannels())


def test_an_excerpt_is_that_part_of_the_sound(client: TestClient, bucket: Path) -> None:
    """Of a WAV file it is the very samples between the two times, at the file's own rate."""
    answer = client.get(_path(bucket), params={"start_s": 1.25, "end_s": 2.5})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav")
    whole, all_samples = _read((bucket / "music/piano.wav").read_bytes())
    part, samples = _read(answer.content)
    assert part.framerate == whole.framerate
    first, last = round(1.25 * whole.framerate), round(2.5 * whole.framerate)
    np.testing.assert_array_equal(samples, all_samples[first:last])


@pytest.mark.parametrize("key", ["music/gong.ogg", "music/cowbell.flac", "animals/owl.wav"])
def test_every_format_can_be_cut(client: TestClient, bucket: Path, key: str) -> None:
    """What begins later is as long as was asked for, or as there is."""
    answer = client.get(_path(bucket, key), params={"start_s": 0.1, "end_s": 0.3})
    part, samples = _read(answer.content)
    assert samples.shape[0] == pytest.approx(part.framerate / 5, abs=2)
    assert np.abs(samples).max() > 0


@pytest.mark.parametrize(("start_s", "end_s"), [(2, 2), (3, 2), (0, 121), (4000, 4001), (-1, 1)])
def test_what_is_no_part_is_refused(
    client: TestClient, bucket: Path, start_s: float, end_s: float
) -> None:
    """Empty, backwards, too long or beyond the end: told as the asker's fault."""
    answer = client.get(_path(bucket), params={"start_s": start_s, "end_s": end_s})
    assert answer.status_code == 422


def test_only_who_may_hear_gets_one(open_to: OpenTo, bucket: Path) -> None:
    """A key that may only search is refused, as it is at the whole sound."""
    client = open_to(bucket=str(bucket), api_keys="ann:a-long-key-of-ann:search")
    answer = client.get(_path(bucket), params={"start_s": 0, "end_s": 1}, headers=KEYS)
    assert answer.status_code == 403


def test_a_sound_that_was_replaced_is_not_cut(
    client: TestClient, bucket: Path, tmp_path: Path
) -> None:
    """Times belong to the sound that was indexed: another one under its key is not passed off."""
    kept = shutil.copy2(bucket / "animals/owl.wav", tmp_path / "owl.wav")
    try:
        shutil.copy(bucket / "music/piano.wav", bucket / "animals/owl.wav")
        url = _path(bucket, "animals/owl.wav")
        assert client.get(url, params={"start_s": 0, "end_s": 1}).status_code == 404
    finally:
        shutil.copy2(kept, bucket / "animals/owl.wav")


def test_an_item_that_is_not_there_is_told(client: TestClient) -> None:
    """It is 404, also where the item is in no bucket of this service."""
    nobody = "/v1/items/6ba7b810-9dad-51d1-80b4-00c04fd430c8/excerpt?start_s=0&end_s=1"
    assert client.get(nobody).status_code == 404
