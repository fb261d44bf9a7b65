"""ClothoV2 as it is published."""

from pathlib import Path

from audiofuse.core.evaluation.clips import Clip, Query
from audiofuse.core.evaluation.clotho import read_clotho
from audiofuse.core.items import Metadata


def test_clotho_is_read_as_published(clotho: Path) -> None:
    """Captions, Latin-1 keywords and odd file names of ClothoV2 become a clip."""
    assert read_clotho(clotho)[0] == Clip(
        path=clotho / "development/ an owl.wav",
        identity="clotho/train/ an owl.wav",
        origin="freesound-4711",
        split="train",
        metadata=Metadata(keywords=("nuit", "forêt", "owl")),
        queries=tuple(
            Query(caption, "caption", "clotho/train/ an owl.wav")
            for caption in ("An owl hoots.", "A bird, at night.", "Hooting.", "Owl.")
        ),
        captions=("An owl hoots.", "A bird, at night.", "Hooting.", "Owl."),
        licence="CC0",
        collection="clotho",
    )


def test_clotho_needs_neither_metadata_nor_all_splits(clotho: Path) -> None:
    """The splits that are there are read; a clip that nothing describes is its file name."""
    second = read_clotho(clotho)[1]
    assert (second.identity, second.origin) == ("clotho/test/owl 2.wav", "")
    assert (second.split, second.metadata) == ("test", Metadata())


def test_clotho_clips_without_number_are_their_file_names(clotho: Path) -> None:
    """Where the table says "Not found" the clips are not one and the same sound."""
    table = clotho / "clotho_metadata_development.csv"
    table.write_bytes(table.read_bytes().replace(b"4711", b"Not found"))
    assert not read_clotho(clotho)[0].origin


def test_clotho_of_a_loader_is_read_too(clotho: Path) -> None:
    """Tables and sounds in the folders of aac-datasets are the same clips."""
    names = [clip.identity for clip in read_clotho(clotho)]
    (clotho / "clotho_csv_files").mkdir()
    (clotho / "clotho_audio_files").mkdir()
    for table in clotho.glob("*.csv"):
        table.rename(clotho / "clotho_csv_files" / table.name)
    for split in ("development", "evaluation"):
        (clotho / split).rename(clotho / "clotho_audio_files" / split)
    found = read_clotho(clotho)
    assert [clip.identity for clip in found] == names
    assert found[0].metadata.keywords == ("nuit", "forêt", "owl")
