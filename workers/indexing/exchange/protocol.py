"""What a message process and the device process say to each other, over a Unix socket.

A message process, with its hello, hands over the memory that its windows lie in (``slab.py``).
Then it sends frames; each is two lengths, a JSON object and, behind it, float32 vectors:

    {"use": version}             have it loaded ─────────> {"used": version, facts of the encoder}
    {"drop": version}            it is needed no more      or {"used": version, "error", ...}
    {"ask": n, "version", "lane", "text", "alone", "working", "grid"}   encode a sound, and fuse
       with {"slot", "samples"}  its next window           it with its text; windows come one by
       with {"last": true}       it has no more            one, the first with the ask itself
    {"fuse": n, as above, "windows": 0} audio              fuse a stored audio vector, or those
                                                           of so many windows for moments
    {"cancel": n}                nobody wants it any more

and is sent

    {"free": [slots], "answers": [{"ask": n, "norm", "widths"} | {"ask": n, "error", ...}
       | {"ask": n, "norms", "first", "spans", "widths"}]}
       and of each answer that is no error its audio and item vectors, of these widths

A sound with a ``grid``, its windows' length and hop in seconds, is also cut into windows: these are
answered, some together and in order, while it is heard, and before the sound itself is.
Slots are free once their windows are encoded. ``working`` is how many of the process's messages are
worked on: once as many wait for the device, nothing more is coming, and no batch waits to be full.
``alone``: it may have ended a device's process; it is given no company.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from audiofuse.core.encoder.embeddings import EncodedItem, Floats, Fused
from audiofuse.core.errors import ConfigurationError, Reason, Rejected, Unavailable
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.windows import EncodedWindows

Message = Mapping[str, Any]
HELLO = b"windows"
LENGTHS = struct.Struct("<II")  # of a frame's line and of its vectors, in bytes


@dataclass(frozen=True)
class EncoderFacts:
    """What a message process knows of an encoder that the device has loaded.

    ``audio_fingerprint``: encoders with equal ones give the same audio vectors. ``windows`` are
    those of its moments, length and hop in seconds, if it has any. ``batch_s`` is what a batch
    holds, in seconds of audio; ``runtime`` computes, on ``device``.
    """

    dim: int
    audio_dim: int
    fuses_stored_audio: bool
    windows: Sequence[float] | None
    audio_fingerprint: str
    batch_s: float
    device: str
    runtime: str

    @property
    def grid(self) -> Grid | None:
        """The windows of its moments."""
        return Grid(*self.windows) if self.windows else None

    @property
    def runs_on(self) -> str:
        """What computes, and by which library, as people read it."""
        return f"{self.device} by {self.runtime}"


class DeviceBugError(Exception):
    """Encoding ended in an exception that says nothing about the sound."""


def pack(message: Message, vectors: Sequence[Floats] = ()) -> bytes:
    """Return the frame of a message and its vectors."""
    line = json.dumps(message).encode()
    size = sum(each.nbytes for each in vectors)
    return b"".join([LENGTHS.pack(len(line), size), line, *(each.tobytes() for each in vectors)])


def frames(stream: BinaryIO) -> Iterator[tuple[dict[str, Any], Floats]]:
    """Yield messages, each with its vectors joined, until the other side is no more."""
    while len(lengths := stream.read(LENGTHS.size)) == LENGTHS.size:
        line_bytes, vector_bytes = LENGTHS.unpack(lengths)
        content = stream.read(line_bytes + vector_bytes)
        if len(content) < line_bytes + vector_bytes:
            return
        vectors = np.frombuffer(content[line_bytes:], np.float32)
        yield json.loads(content[:line_bytes]), vectors


Answer = tuple[int, EncodedItem | EncodedWindows | Exception]


def pack_answers(free: Sequence[int], answers: Sequence[Answer]) -> bytes:
    """Return the frame that frees slots and answers asks."""
    told: list[dict[str, Any]] = []
    vectors: list[Floats] = []
    for number, answer in answers:
        if isinstance(answer, EncodedItem):
            widths = [answer.audio.size, answer.item.size]
            told.append({"ask": number, "norm": float(answer.norm), "widths": widths})
            vectors += [answer.audio, answer.item]
        elif isinstance(answer, EncodedWindows):
            fused = answer.fused
            told.append(
                {
                    "ask": number,
                    "norms": fused.norms.tolist(),
                    "first": answer.first,
                    "spans": answer.spans.tolist(),
                    "widths": [answer.audio.size, fused.vectors.size],
                }
            )
            vectors += [answer.audio, fused.vectors]
        else:
            told.append({"ask": number, **failure(answer)})
    return pack({"free": list(free), "answers": told}, vectors)


def answers_in(message: Message, vectors: Floats) -> Iterator[Answer]:
    """Yield the answers of a frame, each with its ask."""
    start = 0
    for told in message["answers"]:
        if "error" in told:
            yield told["ask"], error_in(told)
            continue
        middle = start + told["widths"][0]
        end = middle + told["widths"][1]
        audio, items = vectors[start:middle], vectors[middle:end]
        start = end
        if "norm" in told:
            yield told["ask"], EncodedItem(audio, items, told["norm"])
        else:
            yield told["ask"], _windows_in(told, audio, items)


def _windows_in(told: Message, audio: Floats, items: Floats) -> EncodedWindows:
    norms = np.array(told["norms"], np.float32)
    return EncodedWindows(
        told["first"],
        np.array(told["spans"]).reshape(-1, 2),
        audio.reshape(len(norms), -1),
        Fused(items.reshape(len(norms), -1), norms),
    )


def failure(error: Exception) -> dict[str, Any]:
    """Return what tells the other side of an error."""
    match error:
        case Rejected():
            return {"error": "rejected", "reason": error.reason, "text": error.detail}
        case Unavailable():
            return {"error": "unavailable", "text": str(error)}
        case ConfigurationError():
            return {"error": "misconfigured", "text": str(error)}
    return {"error": "bug", "text": f"{type(error).__name__}: {error}"}


def error_in(told: Message) -> Exception:
    """Return the error that the other side told of."""
    match told["error"]:
        case "rejected":
            return Rejected(Reason(told["reason"]), told["text"])
        case "unavailable":
            return Unavailable(told["text"])
        case "misconfigured":
            return ConfigurationError(told["text"])
    return DeviceBugError(told["text"])
