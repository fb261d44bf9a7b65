"""The encoders to begin with know what words mean."""

import shutil
from pathlib import Path

import pytest

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.encoder import starting
from audiofuse.core.encoder.embeddings import unit
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.starting import (
    TRAINED,
    default_encoder,
    from_pretrained,
    minilm,
)
from audiofuse.core.evaluation.clips import read_manifest, select_queries
from audiofuse.core.evaluation.evaluation import Gallery, blank_metadata, encode_clips, evaluate
from audiofuse.core.items import Metadata
from audiofuse.core.model.classes import CLASS_SENTENCES, read_class_sentences
from audiofuse.core.model.mobilenet import AUDIOSET_CLASSES
from audiofuse.core.settings import Settings

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """Return the encoder that the product ships."""
    return default_encoder()


def test_any_two_pretrained_towers_make_an_encoder(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing trained, a checkpoint and a text model tell a rooster from the rain.

    Two of each class's ten sentences are enough for that; to read all takes 20 s.
    """
    monkeypatch.setattr(
        starting, "read_class_sentences", lambda names: [x[:2] for x in read_class_sentences(names)]
    )
    shutil.copy(shared / "weights" / "mn04_as_mAP_432.pt", tmp_path)
    shutil.copy(shared / "data" / "text" / "audioset_class_labels_indices.csv", tmp_path)
    started = from_pretrained(Settings(pretrained=tmp_path), "mn04_as", minilm())
    _assert_nearer(
        started, "animals/field-recording-07.flac", "a rooster crowing", "rain on a roof"
    )


def test_the_trained_half_fits_the_limit() -> None:
    """What is shipped of the default encoder has at most 8 MB, and is no copy of a download."""
    assert TRAINED.stat().st_size < 8e6


def test_every_class_is_described() -> None:
    """Each of the 527 classes has ten different sentences, and no unknown class has any."""
    lines = CLASS_SENTENCES.read_text().splitlines()
    described = {name: text.split("|") for name, text in (line.split("\t") for line in lines)}
    assert len(described) == AUDIOSET_CLASSES
    assert {len(set(each)) for each in described.values()} == {10}
    names = ["Bark", "no such class"]
    assert read_class_sentences(names) == [described["Bark"], ["no such class"]]


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("animals/field-recording-07.flac", "a rooster crowing", "rain on a roof"),
        ("people/take-3.mp3", "a baby crying", "an engine running"),
        ("machines/clip-0012.opus", "a motorcycle passing by", "a violin"),
        ("water/recording 2.ogg", "running water", "people laughing"),
    ],
)
def test_a_sound_is_nearer_to_what_it_is(
    encoder: Encoder, name: str, right: str, wrong: str
) -> None:
    """By its audio alone a sound is clearly nearer to a true sentence than to a wrong one."""
    _assert_nearer(encoder, name, right, wrong)


def _assert_nearer(encoder: Encoder, name: str, right: str, wrong: str) -> None:
    with open_recording(SOUNDS / name, max_duration_s=60) as recording:
        embedding = encoder.encode_audio(recording.windows())
    item = encoder.fuse(embedding, [""]).vectors[0]
    near, far = unit(encoder.encode_text([right, wrong])) @ item
    assert near > far + 0.2


def test_tags_behind_a_long_description_are_read(encoder: Encoder) -> None:
    """Keywords are told apart though a description of 40 words comes before them."""
    description = "this was recorded one morning with two small microphones " * 5
    whale, drum = (
        Metadata(description=description, keywords=(tag,)).text for tag in ("whale", "drum")
    )
    whales, drums, asked = unit(encoder.encode_text([whale, drum, "whales singing"]))
    assert asked @ whales > asked @ drums + 0.05


@pytest.fixture(scope="module")
def gallery(shared: Path, encoder: Encoder) -> Gallery:
    """Return all human-described clips, embedded by the shipped encoder."""
    return encode_clips(encoder, read_manifest(shared / "data" / "human.jsonl"))


def test_it_finds_sounds_by_human_sentences(encoder: Encoder, gallery: Gallery) -> None:
    """On held-out human sentences audio is far above random, and adds to metadata.

    Without the silence behind each sound audio has .427, with it .480.
    """
    metrics = evaluate(encoder, gallery, select_queries(gallery.clips, "val"))
    found = {name: each.mean_average_precision for name, each in metrics.items()}
    assert found["audio only"] > 0.46
    assert found["hybrid"] > found["metadata only"]


def test_audio_carries_items_without_metadata(encoder: Encoder, gallery: Gallery) -> None:
    """With half of the metadata gone, both together are clearly above metadata alone."""
    queries = select_queries(gallery.clips, "val")
    metrics = evaluate(encoder, blank_metadata(gallery, 0.5), queries)
    found = {name: each.mean_average_precision for name, each in metrics.items()}
    assert found["hybrid"] > found["metadata only"] + 0.1
