"""Recordings composed of short clips: minutes of a background with events at known moments.

What of them is heard where is known exactly, so that they show how well moments are found. The same
clips, shape and seed give the same samples.
"""

import json
import wave
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE, Samples
from audiofuse.core.errors import ConfigurationError, Rejected
from audiofuse.core.evaluation.clips import Clip

LONGEST_CLIP_S = 60.0  # longer ones are not short clips; they are refused
BACKGROUND_RMS = 10 ** (-30 / 20)  # of full scale; leaves room for events that are louder
CROSSFADE_S = 0.25  # between two clips of a background
STEP_S = 0.01  # loudness is looked at in steps of this length, and below this many dB of the
SILENT_DB = -40.0  # loudest step a clip's beginning and end are silence, which is cut off
MANIFEST = "moments.jsonl"


@dataclass(frozen=True)
class Shape:
    """What is composed: so many recordings of ``duration_s``, each with so many ``events``.

    The events are of ``kinds`` kinds, and their loudness (root mean square) is between ``quietest``
    and ``loudest`` dB above that of the background.
    """

    recordings: int = 12
    duration_s: float = 600.0
    events: int = 6
    kinds: int = 20
    quietest: float = -6.0
    loudest: float = 12.0


@dataclass(frozen=True)
class Kind:
    """Events that the same queries mean: clips of one identity, or of one label."""

    name: str
    queries: tuple[str, ...]
    clips: list[Clip]


@dataclass(frozen=True)
class Event:
    """A clip's place in a recording, in seconds, and its level above the background in dB."""

    kind: Kind
    start_s: float
    end_s: float
    level_db: float


@dataclass(frozen=True)
class Composed:
    """A recording: mono float32 ``(samples,)`` at 32 kHz, within full scale."""

    background: str
    samples: Samples
    events: list[Event]


def compose(
    clips: Sequence[Clip], backgrounds: Mapping[str, Sequence[Clip]], shape: Shape, seed: int
) -> Iterator[Composed]:
    """Compose recordings; each has one background, in turn, and its events are of as many kinds.

    Events are the clips with queries that are in no background; where there are no queries, those
    with labels, meant by their first label. Raises ``ConfigurationError`` when there are too few
    kinds of events, or a clip cannot be used.
    """
    chance = np.random.default_rng(seed)
    taken = {clip.path for found in backgrounds.values() for clip in found}
    kinds = _kinds([clip for clip in clips if clip.path not in taken])
    if len(kinds) < max(shape.kinds, shape.events):
        raise ConfigurationError(
            f"the clips are {len(kinds)} kinds of events; "
            f"{max(shape.kinds, shape.events)} are needed"
        )
    chosen = [kinds[row] for row in chance.permutation(len(kinds))[: shape.kinds]]
    turns = _turns(chosen, shape, chance)
    for number in range(shape.recordings):
        name = list(backgrounds)[number % len(backgrounds)]
        bed = _background(backgrounds[name], shape.duration_s, chance)
        events = [_add(bed, kind, slot, shape, chance) for slot, kind in enumerate(turns[number])]
        yield Composed(name, bed / np.float32(max(1.0, np.abs(bed).max())), events)


def find_backgrounds(clips: Sequence[Clip], names: Sequence[str]) -> dict[str, list[Clip]]:
    """Return the clips of each background, one label of which holds every word of its name.

    Raises ``ConfigurationError`` for a name that no clip has.
    """
    found = {name: [clip for clip in clips if _is_of(clip, name)] for name in names}
    for name, some in found.items():
        if not some:
            raise ConfigurationError(f"no clip has a label of the background {name!r}")
    return found


def write_recordings(composed: Iterator[Composed], folder: Path) -> Iterator[Path]:
    """Write each recording as a WAV file of 16 bits, and at the end their manifest; yield paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    relevant: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    kinds: dict[str, Kind] = {}
    for number, recording in enumerate(composed, 1):
        path = folder / f"recording-{number:03}.wav"
        _write_wav(path, recording.samples)
        rows.append({"audio": path.name, "title": recording.background})
        for event in recording.events:
            kinds[event.kind.name] = event.kind
            span = (path.name, round(event.start_s, 3), round(event.end_s, 3))
            relevant[event.kind.name].append(span)
        yield path
    for name, kind in kinds.items():
        rows += [
            {"text": text, "identity": name, "relevant": relevant[name]} for text in kind.queries
        ]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")
    yield folder / MANIFEST


def _is_of(clip: Clip, background: str) -> bool:
    """Whether one label of a clip holds every word of a background's name."""
    words = set(background.lower().split())
    return any(words <= set(label.lower().split()) for label in clip.metadata.labels)


def _kinds(clips: Sequence[Clip]) -> list[Kind]:
    kinds: dict[str, Kind] = {}
    asked = [clip for clip in clips if clip.queries]
    for clip in asked or [clip for clip in clips if clip.metadata.labels]:
        name = clip.identity if asked else clip.metadata.labels[0]
        texts = dict.fromkeys(query.text for query in clip.queries) if asked else [name.lower()]
        kinds.setdefault(name, Kind(name, tuple(texts), [])).clips.append(clip)
    return list(kinds.values())


def _turns(kinds: list[Kind], shape: Shape, chance: np.random.Generator) -> list[list[Kind]]:
    """Return the kinds of each recording: none twice in one, and all about equally often."""
    turns: list[list[Kind]] = []
    waiting: list[Kind] = []
    for _ in range(shape.recordings):
        turn: list[Kind] = []
        while len(turn) < shape.events:
            fresh = [kind for kind in waiting if kind not in turn]
            if not fresh:
                waiting += [kinds[row] for row in chance.permutation(len(kinds))]
                continue
            turn.append(fresh[0])
            waiting.remove(fresh[0])
        turns.append(turn)
    return turns


def _background(clips: Sequence[Clip], duration_s: float, chance: np.random.Generator) -> Samples:
    """Join clips, drawn by chance and equally loud, until there are ``duration_s``."""
    bed = np.zeros(round(duration_s * SAMPLE_RATE), np.float32)
    fade = round(CROSSFADE_S * SAMPLE_RATE)
    place = 0
    while place < bed.size:
        sound = _heard(clips[int(chance.integers(len(clips)))])
        sound = sound * np.float32(BACKGROUND_RMS / _rms(sound))
        ramp = min(fade, sound.size // 2)
        rising = np.sqrt(np.linspace(0, 1, ramp, dtype=np.float32))
        sound[:ramp] *= rising
        sound[sound.size - ramp :] *= rising[::-1]
        room = bed[place : place + sound.size]
        room += sound[: room.size]
        place += sound.size - ramp
    return bed


def _add(bed: Samples, kind: Kind, slot: int, shape: Shape, chance: np.random.Generator) -> Event:
    """Add an event somewhere in its slot: a recording has one for each, all of equal length."""
    length = bed.size // shape.events
    sound = _heard(kind.clips[int(chance.integers(len(kind.clips)))])[:length]
    start = slot * length + int(chance.integers(length - sound.size + 1))
    level_db = float(chance.uniform(shape.quietest, shape.loudest))
    gain = BACKGROUND_RMS / _rms(sound) * 10 ** (level_db / 20)
    bed[start : start + sound.size] += sound * np.float32(gain)
    return Event(kind, start / SAMPLE_RATE, (start + sound.size) / SAMPLE_RATE, level_db)


def _heard(clip: Clip) -> Samples:
    """Decode a clip without the silence at its beginning and end."""
    try:
        with open_recording(clip.path, LONGEST_CLIP_S) as recording:
            samples: Samples = np.concatenate(list(recording.windows()))
    except (OSError, Rejected) as error:
        raise ConfigurationError(f"{clip.path}: {error}") from error
    step = round(STEP_S * SAMPLE_RATE)
    whole = samples[: samples.size // step * step].reshape(-1, step)
    power = np.square(whole).mean(axis=1)
    loud = np.flatnonzero(power >= power.max() * 10 ** (SILENT_DB / 10))
    return samples[loud[0] * step : (loud[-1] + 1) * step].copy()


def _rms(samples: Samples) -> float:
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean()))


def _write_wav(path: Path, samples: Samples) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
