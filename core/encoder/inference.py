"""What makes encoding fast without changing what it gives; measured in DECISIONS.md."""

import ctypes
import sys
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from audiofuse.core.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES
from audiofuse.core.cores import computing_threads
from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats, unit
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.torch_runtime import TorchRuntime
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.mobilenet import ConvNorm

# glibc's mallopt, malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP_BYTES = 2**31 - 1

Precision = Literal["float32", "float16"]  # bfloat16 is too far from float32: see DECISIONS.md
# How near to float32 an encoder must come in half precision, on sounds that are made up. Raised,
# encoders are refused whose results hardly change; lowered, results of searches may.
LEAST_COSINE = 0.999


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


def run_on_gpu(encoder: Encoder, device: str, precision: Precision) -> None:
    """Have an encoder, in place, compute on a GPU, in few shapes of batches.

    Raises ``ConfigurationError`` if what it gives in half precision is too far from float32.
    """
    encoder.model.to(device)
    encoder.runtime = TorchRuntime(encoder.model, few_shapes=True)
    if precision == "float32":
        return
    exact = _vectors(encoder)
    encoder.runtime = TorchRuntime(encoder.model, getattr(torch, precision), few_shapes=True)
    nearest = float((exact * _vectors(encoder)).sum(1).min())
    if not nearest >= LEAST_COSINE:  # not a number, after an overflow
        raise ConfigurationError(
            f"AUDIOFUSE_PRECISION is {precision}, in which this encoder is too far from float32: "
            f"cosine {nearest:.5f} on what is made up for that, and {LEAST_COSINE} is asked for"
        )


def _vectors(encoder: Encoder) -> Floats:
    """Return what it makes of made-up sounds with texts, and of queries, of unit length."""
    rng, seconds = np.random.default_rng(0), np.arange(WINDOW_SAMPLES) / SAMPLE_RATE
    noise = rng.standard_normal(WINDOW_SAMPLES) / 4
    sweep = np.sin(2 * np.pi * 40 * seconds**3)  # to 12 kHz
    bursts = noise * (seconds % 1 < 0.05)  # noqa: PLR2004 - seconds
    sounds = [each.astype(np.float32) for each in (noise, sweep, bursts, sweep + noise)]
    audio = AudioEmbedding.stack([encoder.encode_audio([sound]) for sound in sounds])
    texts = ["wind", "a siren that comes nearer", "rain on a tin roof", "a dog barks in the street"]
    return np.concatenate([encoder.fuse(audio, texts).vectors, unit(encoder.encode_text(texts))])


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
