"""How fast training is, beside a plain loop of the same model: ``make bench-train``.

The plain loop is what one would write first: decode each sound in the loader, pad all to the
longest of the batch, encode, NT-Xent, backward, Adam; PyTorch's defaults throughout.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.starting import default_encoder
from audiofuse.core.encoder.torch_runtime import words, words_on
from audiofuse.core.evaluation.clips import Clip
from audiofuse.core.items import Metadata, is_audio
from audiofuse.core.model.fusion import AudioTensors
from audiofuse.trainer.data.batches import Examples, training_rows
from audiofuse.trainer.data.cache import AudioCache
from audiofuse.trainer.training.config import FitConfig
from audiofuse.trainer.training.fit import Fit, Task
from audiofuse.trainer.training.loss import nt_xent

SOUNDS = Path(__file__).parents[2] / "examples" / "sounds"
CROP_S, BATCH, EPOCHS = 10, 16, 3
CONFIG = FitConfig(
    epochs=EPOCHS, batch_size=BATCH, chunk=BATCH, crop_s=CROP_S, drop_metadata=0,
    mask_bands=0, mask_frames=0, jitter_bands=False,
)  # fmt: skip


def main() -> None:
    """Train both ways on the example sounds; show the best epoch of each."""
    paths = sorted(path for path in SOUNDS.rglob("*") if is_audio(path.name))
    clips = [
        Clip(path, path.name, "train", Metadata(title=path.stem), captions=(path.stem,))
        for path in paths[: len(paths) // BATCH * BATCH]
    ]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain = min(_plain_epochs(_default(device), clips))
    ours = min(_our_epochs(_default(device), clips))
    table = Table(
        "loop", "pairs/s", "against plain", title=f"{len(clips)} sounds, mn04 + MiniLM, {device}"
    )
    table.add_row("plain", f"{len(clips) / plain:.1f}", "1.0x")
    table.add_row("audiofuse-train", f"{len(clips) / ours:.1f}", f"{plain / ours:.1f}x")
    Console().print(table)


def _default(device: torch.device) -> Encoder:
    encoder = default_encoder()
    encoder.model.to(device)
    return encoder


class Decoded(torch.utils.data.Dataset[tuple[Tensor, str, int]]):
    """Decodes when asked, as a plain loader does."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._clips = clips

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, row: int) -> tuple[Tensor, str, int]:
        """Decode one sound, at most the crop's length."""
        with open_recording(self._clips[row].path, 3600) as recording:
            samples = np.concatenate(list(recording.windows()))[: CROP_S * SAMPLE_RATE]
        return torch.from_numpy(samples), self._clips[row].captions[0], row


def _plain_epochs(encoder: Encoder, clips: Sequence[Clip]) -> Iterator[float]:
    """Train the plain way; yield each epoch's seconds."""
    loader = DataLoader(Decoded(clips), BATCH, shuffle=True, collate_fn=list)
    optimizer = torch.optim.AdamW(encoder.model.parameters(), CONFIG.learning_rate)
    temperature, model = torch.tensor(CONFIG.temperature), encoder.model
    for _ in range(EPOCHS):
        started = time.monotonic()
        for batch in loader:
            waves, sentences, rows = zip(*batch, strict=True)
            padded = pad_sequence(list(waves), batch_first=True).to(model.device)
            pooled = model.audio_tower.frames(model.front_end(padded)).mean(1)
            tokens = words_on(words(encoder.text_processor(sentences)), model.device)
            items = model.fuse(AudioTensors(pooled), tokens)
            loss = nt_xent(items, model.encode_text(tokens), torch.tensor(rows), temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield time.monotonic() - started


def _our_epochs(encoder: Encoder, clips: Sequence[Clip]) -> list[float]:
    """Train our way; return each epoch's seconds, without what decoding once took."""
    seconds: list[float] = []

    def clock(work: Iterable[list[object]], _total: int, _label: str) -> Iterator[list[object]]:
        started = time.monotonic()
        yield from work
        seconds.append(time.monotonic() - started)

    with tempfile.TemporaryDirectory() as folder:
        entries = AudioCache(Path(folder, "cache"), 3600).prepare(clips).entries
        rows = training_rows(clips, every_caption=True)
        examples = Examples(rows, entries, CONFIG.example_config)
        task = Task(examples, lambda _: {}, "epoch", show=clock, say=lambda _: None)
        Fit(encoder, task, CONFIG, Path(folder, "run")).run(resume=False)
    return seconds


if __name__ == "__main__":
    main()
