"""How to train: every option with its default, its source and what it does."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from audiofuse.trainer.data.batches import ExampleConfig
from audiofuse.trainer.data.metadata import Captions, Kind
from audiofuse.trainer.training.augment import Augmentation

MACHINE = frozenset({"chunk", "workers", "bf16"})  # a run may go on with others


class FitConfig(BaseModel):
    """How to train. ``[A]`` marks the authors' code default, ``[E]`` EfficientAT's, ``[us]`` ours.

    Sources: arXiv 2406.15897 and its code at 8d97913; EfficientAT at a425fdc.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: int = Field(default=20, ge=1, description="Epochs. [A] The cosine ends at 20.")
    every_caption: bool = Field(
        default=True,
        description="An epoch sees every caption of a clip; else each clip once, by any. [A] yes",
    )
    batch_size: int = Field(default=64, ge=2, description="Pairs that see each other. [A]")
    chunk: int | None = Field(
        default=None,
        ge=1,
        description="Pairs encoded at once; default: as many as fit into the free memory. When a "
        "GPU's runs out it is halved. The gradient stays that of the whole batch. [us]",
    )
    learning_rate: float = Field(default=2e-5, gt=0, description="Peak, after the warm-up. [A]")
    final_learning_rate: float = Field(default=1e-7, ge=0, description="At the cosine's end. [A]")
    warmup_epochs: float = Field(default=1.0, ge=0, description="Linear from 0. [A]")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's; 0 makes it Adam. [A]")
    audio_rate: float = Field(default=1.0, ge=0, description="Audio tower's rate, relative. [A] 1")
    text_rate: float = Field(default=1.0, ge=0, description="BERT's rate, relative. [A] 1")
    head_rate: float = Field(default=1.0, ge=0, description="Rate of the heads, relative. [A] 1")
    clip_norm: float = Field(default=0.0, ge=0, description="Longest gradient; 0: any. [A]")
    temperature: float = Field(default=0.05, gt=0, description="Of the loss. [A]")
    learn_temperature: bool = Field(default=False, description="Train it too. [A] no")
    metadata: Kind = Field(
        default=Kind.ALL,
        description="Words that items carry: cs labels, os keywords and title, fs another caption, "
        "or all, as when indexing. [us]",
    )
    drop_metadata: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Share of examples without, so that items without are found too. [us]; [A] 0",
    )
    captions: Captions = Field(
        default=Captions.REAL,
        description="Sentences: real, people's; supplied, artificial ones that came with the "
        "sounds, such as WavCaps'; or templates, made here of tags. [A] real",
    )
    teacher: list[str] = Field(
        default=[],
        description="CLAP, a Hugging Face id or a folder, whose similarities of sounds and "
        "sentences are learned besides; several: their mean. It hears each batch, so on a GPU.",
    )
    teacher_weight: float = Field(
        default=1.0, gt=0, description="Of what teachers say, beside the pairs. [us]"
    )
    crop_s: float = Field(
        default=30.0, gt=0, description="Longer sounds are cut at random. [A] for Clotho"
    )
    mask_bands: int = Field(default=48, ge=0, description="SpecAugment, mel bands. [E]")
    mask_frames: int = Field(default=192, ge=0, description="SpecAugment, frames of 10 ms. [E]")
    jitter_bands: bool = Field(default=True, description="Vary the lowest and highest Hz. [E]")
    seed: int = Field(default=0, ge=0, description="Of everything random. [us]")
    bf16: bool | None = Field(
        default=None, description="Towers in bfloat16; default: on a GPU. [us]; [A] fp16"
    )
    workers: int = Field(default=0, ge=0, description="Processes that read ahead. [us]")

    def identity(self) -> dict[str, Any]:
        """Return what tells one run from another, for JSON: not how the machine computes it."""
        unused = set() if self.teacher else {"teacher", "teacher_weight"}  # of older runs, too
        return self.model_dump(mode="json", exclude={*MACHINE, *unused})

    @property
    def augmentation(self) -> Augmentation:
        """What happens to the mel picture."""
        return Augmentation(
            mask_bands=self.mask_bands,
            mask_frames=self.mask_frames,
            jitter_bands=self.jitter_bands,
        )

    @property
    def example_config(self) -> ExampleConfig:
        """How rows become examples."""
        return ExampleConfig(
            self.metadata, self.crop_s, self.drop_metadata, self.captions, self.seed
        )
