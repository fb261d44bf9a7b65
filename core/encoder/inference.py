"""What makes encoding fast without changing what it gives; measured in DECISIONS.md."""

import ctypes
import sys

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from audiofuse.core.cores import computing_threads
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.model.mobilenet import ConvNorm

# glibc's mallopt, malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP_BYTES = 2**31 - 1


def prepare(encoder: Encoder) -> Encoder:
    """Make an encoder fast to run, in place; it can no longer be trained or saved.

    Batch norms are folded into their convolutions, and pictures are laid out channels last.
    """
    audio_tower = encoder.model.audio_tower
    for module in audio_tower.modules():
        if isinstance(module, ConvNorm):
            convolution, norm = module[0], module[1]
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            module[0], module[1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    audio_tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    keep_freed_memory()
    return encoder


def keep_freed_memory() -> None:
    """Have glibc reuse large buffers instead of returning each to the kernel.

    Every batch needs the same few; getting them anew costs more than a third of the time on a CPU.
    Elsewhere than on Linux with glibc nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)


def use_cpus(spare: int = 0) -> None:
    """Give torch's layers the threads that ``computing_threads`` tells; waiting, they spin."""
    torch.set_num_threads(computing_threads(spare))
