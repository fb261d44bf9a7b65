"""A corpus: what is learned from, what is found, what asks; published splits as they are."""

from collections.abc import Callable
from pathlib import Path

import pytest

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import Clip
from audiofuse.core.items import Metadata
from audiofuse.core.settings import Settings
from audiofuse.trainer.data.corpus import Corpus, Division, prepare_corpus

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
OWL, CROW = SOUNDS / "animals/owl.wav", SOUNDS / "animals/crow.flac"
CAPTIONS = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
DESCRIBED = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"


def test_val_is_found_among_neither_train_nor_test() -> None:
    """The gallery of the validation has its own clips and distractors alone."""
    clips = [
        Clip(Path(f"{split}.wav"), split, split, Metadata())
        for split in ("train", "val", "test", "distractor")
    ]
    corpus = Corpus(clips, {})
    assert [clip.split for clip in corpus.gallery] == ["val", "distractor"]
    assert [clip.split for clip in corpus.train] == ["train"]


@pytest.fixture
def clotho(tmp_path: Path, put: Callable[..., None]) -> Path:
    """Return a ClothoV2 that repeats a name and a Freesound id between splits, as the real one."""
    folder = tmp_path / "clotho"
    splits = {"development": OWL, "validation": CROW, "evaluation": SOUNDS / "home/typing.mp3"}
    for split, sound in splits.items():
        name = f"City Ambience_1-2{sound.suffix}"
        put(sound, folder / split / name)
        (folder / f"clotho_captions_{split}.csv").write_text(f"{CAPTIONS}{name},a,b,c,d,e\n")
        (folder / f"clotho_metadata_{split}.csv").write_text(
            f"{DESCRIBED}{name},city;cars,86163,x,x,x,CC0\n"
        )
    return folder


def test_the_release_is_taken_as_it_is(
    clotho: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Names and Freesound ids that the release has in several splits are logged, not refused."""
    corpus = prepare_corpus([str(clotho)], Settings(), tmp_path / "cache", Division())
    assert [clip.split for clip in corpus.clips] == ["train", "val", "test"]
    assert len({clip.identity for clip in corpus.clips}) == 3
    assert "1 sounds are in several of the published splits" in caplog.text


def test_a_bucket_that_has_a_test_sound_is_refused(
    clotho: Path, tmp_path: Path, put: Callable[..., None]
) -> None:
    """One's own train sound that a benchmark validates by is refused, with both places."""
    put(CROW, tmp_path / "mine/crow.flac")
    (tmp_path / "mine/crow.json").write_text('{"split": "train", "captions": "a crow"}')
    with pytest.raises(ConfigurationError, match=r"mine/crow\.flac \(train\) have one content"):
        prepare_corpus(
            [str(clotho), str(tmp_path / "mine")], Settings(), tmp_path / "cache", Division()
        )


def test_a_share_that_divides_nothing_is_refused(clotho: Path, tmp_path: Path) -> None:
    """Where every sound has a split, a share for validation is an option that would be ignored."""
    with pytest.raises(ConfigurationError, match="--val-share"):
        prepare_corpus([str(clotho)], Settings(), tmp_path / "cache", Division(val_share=0.2))
