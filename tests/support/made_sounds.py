"""Sounds that tests make, in any format."""

import struct
import wave
from pathlib import Path

import av
import numpy as np

from audiofuse.core.audio.windows import SAMPLE_RATE

PCM, FLOAT = 1, 3  # format codes of RIFF WAVE
RATES = {"libopus": 48_000, "wmav2": 44_100}  # these encoders do not know 32 kHz


def tone(seconds: float, hertz: float = 440.0, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Return a sine tone at a third of full scale."""
    return (np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate) / 3).astype("f4")


def noise(seconds: float) -> np.ndarray:
    """Return noise, which no codec can make small, at a third of full scale."""
    samples = int(seconds * SAMPLE_RATE)
    return (np.random.default_rng(0).uniform(-1, 1, samples) / 3).astype("f4")


def write_wav(path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE) -> Path:
    """Write 16-bit PCM; a second axis holds the channels."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def header(code: int, bits: int, riff_size: int, data_size: int, rate: int = SAMPLE_RATE) -> bytes:
    """Return the header of a mono WAV file."""
    block = bits // 8
    layout = struct.pack("<IHHIIHH", 16, code, 1, rate, rate * block, block, bits)
    sizes = struct.pack("<I", riff_size), struct.pack("<I", data_size)
    return b"RIFF" + sizes[0] + b"WAVEfmt " + layout + b"data" + sizes[1]


def float_wav(samples: np.ndarray) -> bytes:
    """Return a WAV file of 32-bit floats, which PCM cannot hold."""
    data = samples.astype("<f4").tobytes()
    return header(FLOAT, 32, 36 + len(data), len(data)) + data


def encode_as(
    path: Path,
    samples: np.ndarray,
    codec: str,
    bit_rate: int = 64_000,
    rate: int = SAMPLE_RATE,
    **options: str,
) -> None:
    """Write samples at 32 kHz in the format of the suffix; a second axis holds two channels."""
    layout = "mono" if samples.ndim == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=layout)
    frame.sample_rate = SAMPLE_RATE
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=RATES.get(codec, rate), layout=layout)
        stream.bit_rate = bit_rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
