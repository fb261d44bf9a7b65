"""Whether memory stays as it is: after many mixed batches, and as encoders come and go."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mixed_batches import encode_mixed, resident_mib

from audiofuse.core.bundles.loading import load_folder
from audiofuse.core.memory import give_back_freed
from audiofuse.core.settings import Settings

PARTS = 10  # swaps, and looks at the memory
MiB = 2**20


@dataclass(frozen=True)
class Mix:
    """How much is encoded: batches in all, the most windows in one, the longest window."""

    batches: int
    most: int
    seconds: int


def memory(bundles: Sequence[Path], device: str, mix: Mix) -> dict[str, dict[str, float]]:
    """Encode mixed batches by one bundle, then as many while the two ``bundles`` take turns.

    Returns MiB after each tenth.
    """
    settings, rows = Settings(device="cuda" if device == "cuda" else "cpu"), {}
    encoder, each = load_folder(settings, bundles[0]), mix.batches // PARTS
    for part in range(PARTS):
        encode_mixed(encoder, each, mix.most, mix.seconds, seed=part)
        rows[f"{(part + 1) * each} batches"] = _used(device)
    for swap in range(PARTS):
        following = load_folder(settings, bundles[(swap + 1) % 2])  # beside the one before
        encode_mixed(following, max(1, each // PARTS), mix.most, mix.seconds, seed=swap)
        encoder = following
        del following
        gc.collect()
        give_back_freed()
        rows[f"swap {swap + 1}"] = _used(device)
    del encoder
    return rows


def _used(device: str) -> dict[str, float]:
    used = {"process": resident_mib()}
    if device == "cuda":
        used["GPU, allocated"] = torch.cuda.memory_allocated() / MiB
        used["GPU, reserved"] = torch.cuda.memory_reserved() / MiB
        used["GPU, most so far"] = torch.cuda.max_memory_reserved() / MiB
    return used
