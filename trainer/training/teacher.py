"""Teachers: larger models that hear a batch's sounds and read its sentences, too.

NT-Xent knows which sentence was written for which sound, and takes every other pair for equally
wrong. A teacher estimates how well each sound fits each sentence, and what it estimates is learned
besides (arXiv 2408.11641). Any CLAP will do that ``transformers`` loads; its sizes are its own
matter, as only similarities are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchaudio.functional import resample
from transformers import AutoConfig, ClapModel, ClapProcessor
from transformers.utils import logging as transformers_logging

from audiofuse.core.audio.windows import SAMPLE_RATE, Samples
from audiofuse.core.errors import ConfigurationError
from audiofuse.trainer.data.batches import Example

WINDOWS_AT_ONCE = 16  # heard together; more needs memory, fewer is slower


class Teacher:
    """One CLAP, which does not change."""

    def __init__(self, model: ClapModel, processor: ClapProcessor) -> None:
        """Hear and read by ``model``, on the device where it is."""
        model.train(mode=False)
        self._model = model.requires_grad_(requires_grad=False)
        self._hears, self._reads = processor.feature_extractor, processor.tokenizer
        # How sharply it tells fitting from unfitting: what its own training came to.
        self.scale = float(model.logit_scale_a.exp())

    @torch.no_grad()
    def vectors(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Return unit vectors of the sounds and of the sentences: twice ``(examples, dim)``."""
        windows = [window for example in examples for window in example.windows]
        heard = torch.cat(
            [
                self._heard(windows[at : at + WINDOWS_AT_ONCE])
                for at in range(0, len(windows), WINDOWS_AT_ONCE)
            ]
        )
        # A sound is the mean of its windows by how long they are.
        lengths = torch.tensor([float(window.size) for window in windows], device=heard.device)
        counts = [len(example.windows) for example in examples]
        parts = torch.split(heard * lengths[:, None], counts)
        sounds = torch.stack([part.sum(dim=0) for part in parts])
        return torch.nn.functional.normalize(sounds), self._read([e.sentence for e in examples])

    def _heard(self, windows: Sequence[Samples]) -> Tensor:
        rate = self._hears.sampling_rate
        sounds = [resample(torch.from_numpy(each), SAMPLE_RATE, rate).numpy() for each in windows]
        inputs = self._hears(sounds, sampling_rate=rate, return_tensors="pt")
        features = inputs["input_features"].to(self._model.device)
        # Windows are none too long for it; by itself it takes one by chance for longer.
        is_longer = torch.zeros((len(windows), 1), dtype=torch.bool, device=features.device)
        found = self._model.get_audio_features(input_features=features, is_longer=is_longer)
        vectors: Tensor = found.pooler_output
        return vectors

    def _read(self, sentences: Sequence[str]) -> Tensor:
        inputs = self._reads(list(sentences), padding=True, truncation=True, return_tensors="pt")
        found = self._model.get_text_features(**inputs.to(self._model.device))
        vectors: Tensor = found.pooler_output
        return vectors


@dataclass(frozen=True)
class Teaching:
    """Who teaches, and how much it counts beside the pairs themselves."""

    teachers: Sequence[Teacher]
    weight: float


def load_teacher(source: str, device: str) -> Teacher:
    """Load a CLAP by Hugging Face id or folder; its weights are read from safetensors only.

    Raises ``ConfigurationError`` for what is none, or cannot be had.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        family = AutoConfig.from_pretrained(source).model_type
        if family != "clap":
            raise ConfigurationError(f"--teacher {source}: it is a {family}, and no clap")
        model = ClapModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
        processor = ClapProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--teacher: cannot load {source}: {error}") from error
    model.to(device)  # type: ignore[arg-type]
    return Teacher(model, processor)
