"""The recipe of the encoder that the product ships: ``audiofuse-train default``.

Few sounds may be trained on for an encoder that everyone gets, so most of what it learns of words
comes from text: the sentences that describe each AudioSet class (``core/encoder/assets``), written
for this project. They teach the text head which class a sentence means, and stand in for
captions of the permitted sounds. Nobody's captions, and nothing under a licence that forbids
shipping the result, takes part. The text model itself stays as it is.

Sounds are taught at their own length, without the silence that the encoder appends where it is
used: taught with it, it found less (DECISIONS.md, "The default encoder hears silence").
"""

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize
from torchaudio.functional import resample

from audiofuse.core.audio.windows import SAMPLE_RATE, Samples
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.inference import prepare
from audiofuse.core.encoder.pretrained import CLASS_NAMES, locate, read_class_names
from audiofuse.core.encoder.processing import AudioProcessor
from audiofuse.core.encoder.starting import (
    SHIPPED_CHECKPOINT,
    from_pretrained,
    minilm,
    pooled_texts,
)
from audiofuse.core.encoder.torch_runtime import windows_on
from audiofuse.core.evaluation.clips import Clip, queries_of
from audiofuse.core.evaluation.evaluation import evaluate
from audiofuse.core.model.classes import read_class_sentences
from audiofuse.core.model.text import AnchorHead
from audiofuse.core.settings import Settings
from audiofuse.trainer.data.batches import Example, Examples, cut, training_rows
from audiofuse.trainer.data.corpus import Corpus
from audiofuse.trainer.data.gallery import encode_cached
from audiofuse.trainer.training.config import FitConfig
from audiofuse.trainer.training.fit import LAST, Task
from audiofuse.trainer.training.step import training_windows

LABEL_CLASSES = Path(str(files("audiofuse.trainer.training"))) / "assets" / "label_classes.tsv"
PERMITTED = ("CC0", "CC-BY", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0/CC-BY (freesound)")

CONFIG = FitConfig(
    epochs=8,
    every_caption=False,
    batch_size=128,
    chunk=128,
    learning_rate=2e-3,
    final_learning_rate=1e-5,
    warmup_epochs=0.2,
    audio_rate=0.1,
    drop_metadata=0.5,
    mask_bands=16,
    mask_frames=24,
)
FROZEN = frozenset({"text_tower.bert", "audio_head"})
SENTENCES_PER_STEP = 256
TEACHER_WEIGHT = 500.0  # binary cross-entropy is a mean over 527 classes, most of them silent
VERSIONS = tuple((rate, gain) for rate in (30, 28, 24) for gain in (1.0, 10 ** (-10 / 20)))


def default_task(settings: Settings, corpus: Corpus) -> tuple[Encoder, Task]:
    """Return the start, and what it is to learn of the permitted clips of a corpus.

    It is judged as it is used, with the silence behind each sound. Raises ``ConfigurationError``
    when a pretrained part is not to be had.
    """
    used = from_pretrained(settings, SHIPPED_CHECKPOINT, minilm())
    encoder = without_silence(used)
    folder = settings.pretrained or settings.home / "pretrained"
    names = read_class_names(locate(CLASS_NAMES, folder))
    sentences = dict(zip(names, read_class_sentences(names), strict=True))
    learned = permitted(corpus.clips)
    others = [clip for clip in corpus.clips if clip not in learned]
    rows = training_rows([described(clip, sentences) for clip in learned], every_caption=False)

    def score(_taught: Encoder) -> dict[str, float]:
        queries = queries_of(others)
        gallery = encode_cached(used, others, corpus.entries)
        metrics = evaluate(used, gallery, queries) if queries else {}
        return {f"{row} mAP@10": each.mean_average_precision for row, each in metrics.items()}

    auxiliaries = (ClassAnchorLoss(encoder, names), SelfDistillationLoss(encoder))
    examples = Examples(rows, corpus.entries, CONFIG.example_config)
    return encoder, Task(examples, score, LAST, auxiliaries, FROZEN)


def without_silence(encoder: Encoder) -> Encoder:
    """Return the encoder, with the same weights, hearing sounds at their own length."""
    bare = copy.copy(encoder)
    bare.audio_processor = AudioProcessor(
        encoder.config.preprocessing.model_copy(update={"silence_s": 0.0})
    )
    return bare


def permitted(clips: Iterable[Clip]) -> list[Clip]:
    """Return the clips whose licence permits shipping what was trained on them."""
    return [clip for clip in clips if clip.licence in PERMITTED]


def described(clip: Clip, sentences: Mapping[str, Sequence[str]]) -> Clip:
    """Give a clip sentences of this project in place of any captions that it has.

    They are its labels, and what describes their AudioSet classes; without labels, its title.
    """
    classes = label_classes()
    labels = clip.metadata.labels
    known = [name for label in labels for name in classes.get(label, ())]
    written = [sentence for name in known for sentence in (name, *sentences[name])]
    return replace(clip, captions=(*labels, *written) or (clip.metadata.title,))


def label_classes() -> dict[str, list[str]]:
    """Return the AudioSet classes that each label of ESC-50 means, by label."""
    lines = LABEL_CLASSES.read_text(encoding="utf-8").splitlines()
    return {label: names.split("|") for label, names in (line.split("\t") for line in lines)}


class ClassAnchorLoss:
    """Teaches the anchors which class each sentence means."""

    def __init__(self, encoder: Encoder, names: Sequence[str]) -> None:
        """Encode all sentences once: the text model is frozen."""
        described_by = [[name, name, *own] for name, own in
                        zip(names, read_class_sentences(names), strict=True)]  # fmt: skip
        tower, processor = encoder.model.text_tower, encoder.text_processor
        with torch.inference_mode():
            pooled = [pooled_texts(tower, processor, each) for each in described_by]
        self._texts = normalize(torch.cat(pooled)).clone()
        self._classes = torch.tensor(
            [number for number, each in enumerate(described_by) for _ in each]
        ).to(encoder.model.device)

    def __call__(self, encoder: Encoder, _examples: Sequence[Example], step: int) -> Tensor:
        """Return the cross-entropy of some of the sentences."""
        head = encoder.model.text_tower.project
        assert isinstance(head, AnchorHead)
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(self._texts), (SENTENCES_PER_STEP,), generator=generator)
        return cross_entropy(head.anchors(self._texts[rows]), self._classes[rows])


class SelfDistillationLoss:
    """Teach the audio tower to tag a sound at once as it tags several versions of it on average.

    Played slower and quieter, sounds are named better by the pretrained tower, and their mean is
    better than each (DECISIONS.md). The tower is taught that mean, so that one hearing suffices;
    that keeps it near what it knew as well.
    """

    def __init__(self, encoder: Encoder) -> None:
        """Remember the encoder as it is: it is the teacher."""
        self._teacher = prepare(copy.deepcopy(encoder))
        self._teacher.model.eval()
        self._taught: dict[bytes, Tensor] = {}  # sounds this short are never cut: tagged once

    def __call__(self, encoder: Encoder, examples: Sequence[Example], _step: int) -> Tensor:
        """Return the cross-entropy of the augmented sound's tags to the mean of the versions."""
        clips = [example.windows for example in examples]
        target = torch.stack([self._target(clip) for clip in clips])
        return TEACHER_WEIGHT * binary_cross_entropy_with_logits(tags(encoder, clips), target)

    @torch.no_grad()
    def _target(self, clip: Sequence[Samples]) -> Tensor:
        """Return the mean probability of each class: ``(527,)``."""
        key = hashlib.sha256(b"".join(window.tobytes() for window in clip)).digest()
        if key not in self._taught:
            tagged = [tags(self._teacher, [_changed(clip, *version)]) for version in VERSIONS]
            self._taught[key] = torch.cat(tagged).sigmoid().mean(0)
        return self._taught[key]


def tags(encoder: Encoder, clips: Sequence[Sequence[Samples]]) -> Tensor:
    """Return the audio tower's class logits ``(clips, 527)``, with gradients."""
    windows = windows_on(training_windows(encoder, clips), encoder.model.device)
    return encoder.model.tag(windows, len(clips))


def _changed(windows: Sequence[Samples], rate: int, gain: float) -> list[Samples]:
    """Play a clip slower, at ``rate`` kHz of its 32, and quieter."""
    clip = torch.from_numpy(np.concatenate(windows))
    return cut((gain * resample(clip, rate, SAMPLE_RATE // 1000)).numpy())
