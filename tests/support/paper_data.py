"""ClothoV2, AudioCaps and towers in small: real rows of tables, made sounds, tiny weights.

The rows are those of ``../shared/data/text``, with what trips a loader among them: a file name and
Freesound ids that two splits have. ClothoV2's evaluation table and AudioSet's labels are not there:
other rows of the development stand in for the one, labels that a caption names for the other.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from made_sounds import write_wav
from transformers import BertConfig, BertModel

from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.encoder.processing import character_tokenizer
from audiofuse.core.model.config import TINY
from audiofuse.core.model.mobilenet import MobileNet

SHARED_NAME = "City Ambience w_ Car Passing_1-2.wav"  # of development and validation
SHARED_IDS = {"86163", "130603"}  # on Freesound, of development and validation
CHECKPOINT = "mn01_mine.pt"
Row = dict[str, str]


def make_clotho(text: Path, folder: Path, clips: int) -> Path:
    """Make a ClothoV2 of so many clips a split, beside what its splits share."""
    captions = _read(text / "clotho_captions_development.csv")
    validation = _read(text / "clotho_captions_validation.csv")
    facts = {row["file_name"]: row for row in _read(text / "clotho_metadata_development.csv")}
    told = [row for row in captions if facts.get(row["file_name"], {}).get("keywords")]
    shared = [
        row for row in captions
        if row["file_name"] == SHARED_NAME
        or facts.get(row["file_name"], {}).get("sound_id") in SHARED_IDS
    ]  # fmt: skip
    assert shared
    splits = {
        "development": [*shared, *told[:clips]],
        "validation": [*(r for r in validation if r["file_name"] == SHARED_NAME),
                       *validation[:clips]],
        "evaluation": told[clips : 2 * clips],
    }  # fmt: skip
    for split, rows in splits.items():
        _write(folder / f"clotho_captions_{split}.csv", rows)
        _hum(folder / split / row["file_name"] for row in rows)
        described = [facts[row["file_name"]] for row in rows if row["file_name"] in facts]
        if split != "validation":
            _write(folder / f"clotho_metadata_{split}.csv", described, "latin-1")
    return folder


def make_audiocaps(text: Path, folder: Path, clips: int) -> Path:
    """Make an AudioCaps of so many clips to learn from and half as many to find, with labels."""
    names = _read(text / "audioset_class_labels_indices.csv")
    (folder / "audio").mkdir(parents=True)
    (folder / "class_labels_indices.csv").write_bytes(
        (text / "audioset_class_labels_indices.csv").read_bytes()
    )
    segments = ["# YTID, start_seconds, end_seconds, positive_labels"]
    for split, count in (("train", clips), ("val", clips // 2)):
        rows = _read(text / f"audiocaps_{split}.csv")
        chosen = list(dict.fromkeys(row["youtube_id"] for row in rows))[:count]
        taken = [row for row in rows if row["youtube_id"] in chosen]
        _write(folder / f"{split}.csv", taken)
        _hum(folder / "audio" / f"{name}.wav" for name in chosen)
        for name in chosen:
            said = " ".join(row["caption"] for row in taken if row["youtube_id"] == name).lower()
            heads = {row["mid"]: row["display_name"].split()[0].lower() for row in names}
            labels = [mid for mid, head in heads.items() if head in said.split()]
            segments.append(f'{name}, 0.000, 10.000, "{",".join(labels[:3] or ["/m/09x0r"])}"')
    (folder / "train_segments.csv").write_text("\n".join(segments) + "\n")
    return folder


def make_towers(folder: Path) -> tuple[Path, Path]:
    """Make an audio checkpoint and a BERT of random weights; return their paths."""
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    torch.save(MobileNet(0.1).state_dict(), folder / CHECKPOINT)
    shape = {key: value for key, value in TINY.text.bert.items() if key != "model_type"}
    BertModel(BertConfig(**shape), add_pooling_layer=False).save_pretrained(folder / "bert")
    character_tokenizer().save_pretrained(folder / "bert")
    return folder / CHECKPOINT, folder / "bert"


def _read(table: Path) -> list[Row]:
    encoding = "latin-1" if "metadata" in table.name else "utf-8-sig"
    return list(csv.DictReader(io.StringIO(table.read_text(encoding))))


def _write(table: Path, rows: Sequence[Row], encoding: str = "utf-8") -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _hum(paths: Iterable[Path]) -> None:
    """Write a second of a tone and noise to each, by its name."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        chance = np.random.default_rng(list(path.name.encode()))
        times = np.arange(SAMPLE_RATE) / SAMPLE_RATE
        tone = np.sin(2 * np.pi * chance.integers(100, 4000) * times)
        write_wav(path, 0.3 * tone + 0.1 * chance.uniform(-1, 1, SAMPLE_RATE))
