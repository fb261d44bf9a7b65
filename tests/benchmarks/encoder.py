"""How fast an encoder hears, against the plain reading of the method: ``make bench-encoder``.

Plain is what the papers' code does: one clip at a time, float32, the mel picture on the CPU by a
convolution and a complex power, batch norms as trained. All variants take turns in one run, so that
their ratios hold on a busy machine; each figure is the best of the rounds.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from audiofuse.core.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES, Samples
from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.bundles.loading import load_folder
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.inference import prepare
from audiofuse.core.model.config import TINY, AudioConfig, EncoderConfig
from audiofuse.core.model.frontend import MelFrontEnd
from audiofuse.core.model.mel import (
    LOG_OFFSET,
    NORM_SCALE,
    NORM_SHIFT,
    PREEMPHASIS,
)
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.terminal.display import metrics_table

Run = Callable[[], object]


def plain_mel(front_end: MelFrontEnd, waveform: Tensor) -> Tensor:
    """Compute the mel picture ``(1, 128, frames)`` the way EfficientAT's preprocessing does."""
    kernel = torch.tensor([[[-PREEMPHASIS, 1.0]]])
    emphasised = nn.functional.conv1d(waveform.unsqueeze(1), kernel).squeeze(1)
    spectrum = torch.stft(
        emphasised, 1024, hop_length=320, win_length=800, window=front_end.window,
        center=True, return_complex=True,
    )  # fmt: skip
    power = torch.view_as_real(spectrum).pow(2).sum(-1)
    mel = torch.matmul(front_end.mel_basis, power)
    return ((mel + LOG_OFFSET).log() + NORM_SHIFT) / NORM_SCALE


def plain(encoder: Encoder, clips: list[list[Samples]], device: torch.device) -> Run:
    """Return the plain reading over all clips."""
    front_end = MelFrontEnd()

    @torch.no_grad()
    def run() -> None:
        for windows in clips:
            for window in windows:
                mel = plain_mel(front_end, torch.from_numpy(window)[None]).to(device)
                encoder.model.audio_tower.frames(mel).mean(1).cpu()

    return run


def batched(encoder: Encoder, clips: list[list[Samples]], size: int) -> Run:
    """Return hearing with windows of all clips in batches of ``size``."""
    windows = [window for clip in clips for window in clip]

    def run() -> None:
        for start in range(0, len(windows), size):
            encoder.encode_windows(windows[start : start + size])

    return run


def one_by_one(encoder: Encoder, clips: list[list[Samples]]) -> Run:
    """Return hearing clip by clip, as the worker does today."""
    return lambda: [encoder.encode_audio(windows) for windows in clips]


def best_times(variants: dict[str, Run], rounds: int) -> dict[str, float]:
    """Let all variants take turns; return the best seconds of each."""
    best = dict.fromkeys(variants, float("inf"))
    for _ in range(rounds):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def _on(device: torch.device, encoder: Encoder) -> Encoder:
    encoder.model.to(device)
    return encoder


def _by_onnx_runtime(encoder: Encoder) -> Encoder:
    """Return the encoder as workers on a CPU run it."""
    with tempfile.TemporaryDirectory() as folder:
        return load_folder(Settings(device="cpu"), save_bundle(encoder, Path(folder), "any", ""))


def measure(
    width: float, seconds: int, count: int, rounds: int, device: torch.device, batches: list[int]
) -> dict[str, dict[str, float]]:
    """Return clips per second and the ratio to plain of each variant."""
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal(seconds * SAMPLE_RATE).astype("f4") / 10 for _ in range(count)]
    clips = [np.split(clip, range(WINDOW_SAMPLES, clip.size, WINDOW_SAMPLES)) for clip in samples]
    config = EncoderConfig(dim=1024, audio=AudioConfig(width=width), text=TINY.text)
    variants: dict[str, Run] = {
        "plain": plain(_on(device, Encoder.random(config, seed=0)), clips, device)
    }
    ours = _on(device, prepare(Encoder.random(config, seed=0)))
    variants["ours, clip by clip"] = one_by_one(ours, clips)
    variants |= {f"ours, batches of {size}": batched(ours, clips, size) for size in batches}
    if device.type == "cpu":
        onnx = _by_onnx_runtime(Encoder.random(config, seed=0))
        variants["ONNX Runtime, clip by clip"] = one_by_one(onnx, clips)
        variants |= {
            f"ONNX Runtime, batches of {size}": batched(onnx, clips, size) for size in batches
        }
    best = best_times(variants, rounds)
    return {
        name: {"clips/s": count / took, "times plain": best["plain"] / took}
        for name, took in best.items()
    }


def main() -> None:
    """Measure every width and length; print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.4, 1.0])
    parser.add_argument("--seconds", type=int, nargs="+", default=[5, 30])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batches", type=int, nargs="+", default=[8])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    console = Console()
    for width in options.widths:
        for seconds in options.seconds:
            rows = measure(
                width, seconds, options.clips, options.rounds,
                torch.device(options.device), options.batches,
            )  # fmt: skip
            console.print(metrics_table(f"width {width}, {seconds}-s clips", rows))


if __name__ == "__main__":
    main()
