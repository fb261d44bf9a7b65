"""WavCaps as it is shared: sounds with artificial captions, to learn from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import Clip
from audiofuse.core.items import Metadata
from audiofuse.core.settings import Settings
from audiofuse.trainer.data.corpus import Division, prepare_corpus
from audiofuse.trainer.data.wavcaps import read_wavcaps

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
OWL, CROW = SOUNDS / "animals/owl.wav", SOUNDS / "animals/crow.flac"
ROWS: dict[str, list[dict[str, Any]]] = {
    "FreeSound": [
        {"id": "180913", "file_name": "UK Mello.wav", "tags": ["ringtone", " "], "duration": 3.2,
         "description": "A ringtone.", "caption": "A ringtone is playing."},
        {"id": "4711", "caption": "An owl hoots."},
    ],
    "AudioSet_SL": [{"id": "Yr1nicOVtvkQ.wav", "caption": "Wind is heard.", "duration": 10.0}],
    "SoundBible": [{"id": 2219, "title": "Landing", "caption": "An airplane lands."}],
    "blacklist": [],
}  # fmt: skip


@pytest.fixture
def wavcaps(tmp_path: Path, put: Callable[..., None]) -> Path:
    """Return a folder of four sources' files, of which one sound is missing."""
    folder = tmp_path / "wavcaps"
    for source, rows in ROWS.items():
        table = folder / "json_files" / source / "final.json"
        table.parent.mkdir(parents=True)
        table.write_text(json.dumps({"num_captions_per_audio": 1, "data": rows}))
    put(OWL, folder / "Audio/FreeSound/180913.wav", folder / "SoundBible/2219.wav")
    put(
        CROW,
        folder / "Audio/FreeSound/4711.flac",
        folder / "Zip_files/AudioSet_SL/Yr1nicOVtvkQ.flac",
    )
    return folder


def test_wavcaps_is_read_as_it_is_shared(wavcaps: Path) -> None:
    """Each source's rows become clips whose captions are artificial, named as others name them."""
    clips = {clip.identity: clip for clip in read_wavcaps(wavcaps)}
    assert clips["freesound-180913"] == Clip(
        path=wavcaps / "Audio/FreeSound/180913.wav",
        identity="freesound-180913",
        split="train",
        metadata=Metadata("UK Mello", "A ringtone.", ("ringtone",)),
        collection="wavcaps-FreeSound",
        artificial=("A ringtone is playing.",),
    )
    assert set(clips) == {
        "freesound-180913", "freesound-4711", "youtube-r1nicOVtvkQ", "wavcaps-SoundBible-2219"
    }  # fmt: skip
    assert clips["wavcaps-SoundBible-2219"].metadata.title == "Landing"


def test_wavcaps_gives_way_to_a_benchmark(
    wavcaps: Path, clotho: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What ClothoV2 judges by is left out of WavCaps, and told; the rest is learned from."""
    described = clotho / "clotho_metadata_development.csv"
    described.rename(clotho / "clotho_metadata_evaluation.csv")
    table = clotho / "clotho_metadata_evaluation.csv"
    table.write_bytes(table.read_bytes().replace(b" an owl.wav", b"owl 2.wav"))
    (clotho / "development/ an owl.wav").unlink()
    for copy in ("Audio/FreeSound/180913.wav", "SoundBible/2219.wav"):
        (wavcaps / copy).unlink()  # the same recording as ClothoV2's, here
    corpus = prepare_corpus([str(wavcaps), str(clotho)], Settings(), tmp_path / "cache", Division())
    assert {clip.identity for clip in corpus.train} == {"youtube-r1nicOVtvkQ"}
    assert corpus.benchmarks == ("clotho",)
    assert "1 clips are left out: others judge by them" in caplog.text


@pytest.mark.parametrize(
    ("content", "wrong"),
    [("{", "cannot read .*final.json"), ('{"data": [{"id": "1"}]}', r"data\.0\.caption")],
)
def test_another_form_is_named(wavcaps: Path, content: str, wrong: str) -> None:
    """A table that is none of WavCaps' is an error with its name."""
    (wavcaps / "json_files/SoundBible/final.json").write_text(content)
    with pytest.raises(ConfigurationError, match=wrong):
        read_wavcaps(wavcaps)
