"""Buckets: sounds with their sidecars, as a worker would index them."""

from pathlib import Path
from typing import Any

import pytest

from audiofuse.core.errors import ConfigurationError, ObjectChanged, Reason, Unavailable
from audiofuse.core.evaluation.clips import Clip, Query
from audiofuse.core.items import Metadata, ObjectInfo
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.store import FolderStore, Store, open_store
from audiofuse.trainer.data.bucket import read_bucket

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
OWL, CROW = SOUNDS / "animals/owl.wav", SOUNDS / "animals/crow.flac"


def test_a_bucket_is_read_with_its_sidecars(folder: Path, tmp_path: Path) -> None:
    """Words, captions, identity, split and queries come from the sidecar; defaults fill in."""
    dataset = read_bucket(FolderStore(folder), tmp_path / "downloads")
    bare, crow, owl = dataset.clips
    assert owl == Clip(
        path=folder / "night/owl.wav",
        identity="the owl",
        split="val",
        metadata=Metadata(title="Owl"),
        queries=(Query("hooting", "", "the owl"),),
        captions=("an owl hoots", "a bird at night"),
        collection="birds",
    )
    assert (crow.identity, crow.split) == ("birds/crow.flac", "")
    assert crow.metadata == Metadata(keywords=("crow", "caw"))
    assert crow.queries == (Query("a crow calls", "caption", "birds/crow.flac"),)
    assert (bare.metadata, bare.captions, bare.queries) == (Metadata(), (), ())
    assert not dataset.rejected
    assert not (tmp_path / "downloads").exists()


@pytest.mark.parametrize(
    "sidecar", [b"not json", b'{"captions": 3}', b'{"title": "' + b"x" * 300_000 + b'"}']
)
def test_a_broken_sidecar_costs_its_clip_alone(
    folder: Path, tmp_path: Path, sidecar: bytes
) -> None:
    """A clip whose split cannot be known is left out and listed; the others are read."""
    (folder / "night/owl.wav.json").write_bytes(sidecar)
    dataset = read_bucket(FolderStore(folder), tmp_path / "downloads")
    assert [clip.path.name for clip in dataset.clips] == ["bare.wav", "crow.flac"]
    assert [(key, error.reason) for key, error in dataset.rejected] == [
        ("night/owl.wav.json", Reason.BAD_SIDECAR)
    ]


def test_s3_is_fetched_once(s3: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are fetched whole on the first run, and only replaced ones on the next."""
    downloads = tmp_path / "downloads"
    store = open_store(s3)
    first = read_bucket(store, downloads)
    assert [clip.path.read_bytes() for clip in first.clips] == [
        path.read_bytes() for path in (OWL, CROW, OWL)
    ]
    assert [clip.path.suffix for clip in first.clips] == [".wav", ".flac", ".wav"]
    assert first.clips[0].identity == f"{store.bucket}/bare.wav"
    client = s3_client(s3)
    client.put_object(Bucket=store.bucket, Key="bare.wav", Body=b"other")
    opened = []
    really_open = store.open

    def listening(info: ObjectInfo) -> Any:
        opened.append(info.key)
        return really_open(info)

    monkeypatch.setattr(store, "open", listening)
    second = read_bucket(store, downloads)
    assert sorted(key for key in opened if not key.endswith(".json")) == ["bare.wav"]
    assert second.clips[0].path.read_bytes() == b"other"
    assert [clip.path for clip in second.clips[1:]] == [clip.path for clip in first.clips[1:]]
    assert len(list(downloads.iterdir())) == 4


def test_s3_user_metadata_fills_gaps(s3: Settings, tmp_path: Path) -> None:
    """What a worker would index is what is trained on: user metadata counts as it does there."""
    client = s3_client(s3)
    client.put_object(
        Bucket=s3.bucket.removeprefix("s3://"),
        Key="crow.flac",
        Body=CROW.read_bytes(),
        Metadata={"title": "Crow", "keywords": "beaten by the sidecar"},
    )
    crow = read_bucket(open_store(s3), tmp_path / "downloads").clips[1]
    assert crow.metadata == Metadata(title="Crow", keywords=("crow", "caw"))


class _Restless(FolderStore):
    """A folder in which a sidecar is replaced whenever it is read, so many times."""

    changes = 0

    def read(self, info: ObjectInfo) -> bytes:
        """Refuse what changed meanwhile."""
        if info.key == "crow.json" and self.changes > 0:
            self.changes -= 1
            raise ObjectChanged(info.key)
        return super().read(info)


def test_what_changes_meanwhile_is_looked_at_again(folder: Path, tmp_path: Path) -> None:
    """An object that is replaced while it is read is read as it is then, unless it never rests."""
    store = _Restless(folder)
    store.changes = 2
    assert len(read_bucket(store, tmp_path).clips) == 3
    store.changes = 1000
    with pytest.raises(Unavailable, match=r"crow\.flac"):
        read_bucket(store, tmp_path)


def test_what_is_gone_meanwhile_is_no_clip(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound that was listed and then deleted is left out without a word."""
    store: Store = FolderStore(folder)
    listed = list(store.list())
    (folder / "bare.wav").unlink()
    monkeypatch.setattr(store, "list", lambda: iter(listed))
    dataset = read_bucket(store, tmp_path)
    assert [clip.path.name for clip in dataset.clips] == ["crow.flac", "owl.wav"]
    assert not dataset.rejected


def test_downloads_that_cannot_be_kept_are_an_error(s3: Settings, tmp_path: Path) -> None:
    """A download folder that cannot be written is named, instead of a traceback."""
    (tmp_path / "downloads").touch()
    with pytest.raises(ConfigurationError, match="downloads"):
        read_bucket(open_store(s3), tmp_path / "downloads")


def test_progress_sees_every_sound(folder: Path, tmp_path: Path) -> None:
    """A progress display is given the sounds of the bucket, with their number."""
    seen = []

    def count(work: Any) -> Any:
        seen.append(len(work))
        return work

    read_bucket(FolderStore(folder), tmp_path, count)
    assert seen == [3]
