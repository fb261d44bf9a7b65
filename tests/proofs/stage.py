"""What a scenario plays on: it changes the bucket, and knows the truth about it."""

import contextlib
import io
import json
import os
import random
import tempfile
import time
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import numpy as np
from deployment import BUCKET, SOUNDS, Deployment, until

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats, unit
from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.index.index import Point
from audiofuse.core.items import Metadata, is_audio, moment_id, sidecar_keys
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.hearing import hear
from audiofuse.core.moments.stored import moments_named, names_moments
from audiofuse.core.storage.store import open_store

LONG_S = 30
SMALL_BYTES = 60_000
FIELDS = ("etag", "sidecar_etag", "modified", "size", "title", "description", "keywords", "labels")
WAV = b"RIFF%sWAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data%s"


@dataclass(frozen=True)
class Content:
    """What an object holds, and why it is rejected; ``None`` where only decoding tells."""

    data: bytes
    bad: Reason | bool | None = False
    words: tuple[tuple[str, str], ...] = ()  # user metadata
    storage_class: str = "STANDARD"


@dataclass
class Stage:
    """What a scenario plays on: a folder of the bucket, and the truth about it."""

    deployment: Deployment
    prefix: str
    random: random.Random
    scale: float
    truth: dict[str, Content] = field(default_factory=dict)
    told: int = 0
    notes: list[str] = field(default_factory=list)  # what a scenario measured

    def number(self, usual: int) -> int:
        """Return how many of something there are at this scale."""
        return max(3, round(usual * self.scale))

    @cached_property
    def sounds(self) -> list[Path]:
        """Small real sounds, of every format."""
        files = (path for path in SOUNDS.rglob("*.*") if path.suffix not in {".json", ".md"})
        return sorted(path for path in files if path.stat().st_size < SMALL_BYTES)

    @cached_property
    def bad(self) -> list[Content]:
        """What no sound is."""
        flac = next(path for path in self.sounds if path.suffix == ".flac").read_bytes()
        silent = WAV % (b"\xa4\x3e\0\0", b"\x80\x3e\0\0") + bytes(16_000)
        return [
            Content(b"", Reason.EMPTY),
            Content(b"no sound", Reason.NOT_AUDIO),
            Content(silent, Reason.SILENT),
            Content(flac[: len(flac) // 2], Reason.DAMAGED),
            Content(self.long_sound(9).data[:-160_000], Reason.DAMAGED),
        ]

    def sound(self) -> Content:
        """Return a sound, of which one in ten is bad; some have user metadata, or moments."""
        if self.random.random() < 0.1:
            return self.random.choice(self.bad)
        if self.random.random() < 0.1:
            return self.long_sound(self.random.randrange(5))
        words = (("title", f"user {self.random.random():.6f}"),)
        data = self.random.choice(self.sounds).read_bytes()
        on_s3_some = self.deployment.s3 and self.random.random() < 0.2
        return Content(data, words=words if on_s3_some else ())

    def sidecar(self) -> Content:
        """Return a sidecar, of which one in ten is broken."""
        if self.random.random() < 0.1:
            return Content(b"{", bad=True)
        number = self.random.randrange(10**6)
        return Content(json.dumps({"title": f"title {number}", "keywords": "one;two"}).encode())

    def long_sound(self, number: int, seconds: int = LONG_S) -> Content:
        """Return half a minute of noise, another one for each number, over and over."""
        noise = random.Random(number).randbytes(LONG_S * 16_000) * (seconds // LONG_S)
        size = len(noise).to_bytes(4, "little")
        return Content(WAV % (size, size) + noise)

    def new_key(self, suffix: str = "") -> str:
        """Return a key that was never used."""
        self._keys = getattr(self, "_keys", 0) + 1
        return f"{self.prefix}{self._keys:04}.{suffix or self.random.choice(['wav', 'ogg', 'mp3'])}"

    def put(self, key: str, content: Content, mtime: float | None = None) -> str:
        """Write an object; return its key."""
        self.truth[key] = content
        self.told += 1
        if self.deployment.s3:
            self.deployment.s3.put_object(
                Bucket=BUCKET, Key=key, Body=content.data, Metadata=dict(content.words),
                StorageClass=content.storage_class,
            )  # fmt: skip
        else:
            path = self.deployment.root / BUCKET / key
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.data)
            if mtime is not None:
                os.utime(path, (mtime, mtime))
        return key

    def delete(self, key: str) -> str:
        """Delete an object; return its key."""
        del self.truth[key]
        self.told += 1
        if self.deployment.s3:
            self.deployment.s3.delete_object(Bucket=BUCKET, Key=key)
        else:
            (self.deployment.root / BUCKET / key).unlink()
        return key

    def rename(self, key: str, new: str) -> None:
        """Rename an object, as S3 does: copy and delete."""
        self.truth[new] = self.truth[key]
        self.told += 1
        source = {"Bucket": BUCKET, "Key": key}
        self.deployment.s3.copy_object(Bucket=BUCKET, Key=new, CopySource=source)
        self.delete(key)

    def tell(self, keys: Iterable[str]) -> None:
        """Send an event for each key, with a time that is nobody's business."""
        self.send(self.event(key) for key in keys)

    def event(self, key: str) -> str:
        """Return the event that tells of a key."""
        name = self.random.choice(["ObjectCreated:Put", "ObjectRemoved:Delete"])
        at = self.random.choice(["1970-01-01T00:00:00Z", "2100-01-01T00:00:00Z"])
        s3 = {"bucket": {"name": BUCKET}, "object": {"key": quote_plus(key)}}
        record = {"eventSource": "aws:s3", "eventName": name, "eventTime": at, "s3": s3}
        return json.dumps({"Records": [record]})

    def send(self, bodies: Iterable[str]) -> None:
        """Put messages into the queue that the intake reads."""
        for body in bodies:
            self.told += 1
            self.deployment.sqs.send_message(
                QueueUrl=self.deployment.settings.sqs_queue_url, MessageBody=body
            )

    def fill(self, count: int) -> list[str]:
        """Put sounds, one in three with a sidecar, in any order; return all keys."""
        changed = []
        for _ in range(self.number(count)):
            key = self.new_key()
            contents = {key: self.sound()}
            if self.random.random() < 0.3:
                contents[self.random.choice(sidecar_keys(key))] = self.sidecar()
            any_order = self.random.sample(sorted(contents), len(contents))
            changed += [self.put(each, contents[each]) for each in any_order]
        return changed

    def churn(self, count: int) -> list[str]:
        """Put, replace and delete sounds and sidecars; return the keys in their order."""
        changed = []
        for _ in range(self.number(count)):
            there = sorted(self.open_keys())
            known = list(filter(is_audio, there))
            draw = self.random.random()
            if len(known) < 5 or draw < 0.4:
                changed.append(self.put(self.new_key(), self.sound()))
            elif draw < 0.6:
                changed.append(self.put(self.random.choice(known), self.sound()))
            elif draw < 0.8:
                sidecar = self.random.choice(sidecar_keys(self.random.choice(known)))
                changed.append(self.put(sidecar, self.sidecar()))
            else:
                changed.append(self.delete(self.random.choice(there)))
        return changed

    def open_keys(self) -> Iterable[str]:
        """Return the keys of what may be changed."""
        return self.truth

    def pause(self, longest_s: float) -> None:
        """Let the others go on for a while."""
        time.sleep(self.random.uniform(0, longest_s))

    def settle(self) -> None:
        """Wait until all is quiet."""
        if not self.deployment.s3:
            last = self.put(f"{self.prefix}~{self.told}.wav", Content(self.sounds[-1].read_bytes()))
            store = open_store(self.deployment.settings)
            until(lambda: self._points()[last].payload["etag"] == store.head(last).etag, "the last")
        self.await_quiet()

    def await_quiet(self) -> None:
        """Wait until no event and no message is left."""
        for _ in range(3):  # between two queues a message may be in neither
            until(self.deployment.idle, "quiet")
            time.sleep(0.2)

    def _points(self) -> dict[str, Point]:
        live = self.deployment.index.live()
        found = self.deployment.index.scroll(live, ["key"])
        ids = [point.id for point in found if point.payload["key"].startswith(self.prefix)]
        points = self.deployment.index.get(live, ids, vectors=True).values()
        keys = [point.payload["key"] for point in points]
        assert len(keys) == len(set(keys)), "a key has several points"
        return {point.payload["key"]: point for point in points}

    @property
    def _moments(self) -> dict[str, dict[int, str]]:
        """The states of all moments, by key and number."""
        live, found = self.deployment.index.live(), dict[str, dict[int, str]]()
        for point in self.deployment.index.scroll(live.moments, ["key", "number", "state"]):
            if point.payload["key"].startswith(self.prefix):
                told = found.setdefault(point.payload["key"], {})
                told[point.payload["number"]] = point.payload["state"]
        return found

    def differences(self) -> list[str]:
        """Return everything in which index and letters differ from the bucket."""
        deployment = self.deployment
        faults = [
            f"{name} ended by itself"
            for name, part in deployment.parts.items()
            if part.process.poll() is not None
        ]
        store, points = open_store(deployment.settings), self._points()
        objects = {info.key for info in store.list(self.prefix)}
        if objects != self.truth.keys():
            faults.append(f"the bucket itself: {objects ^ self.truth.keys()}")
        left = self._moments.keys() - points.keys()
        faults += [f"{key}: moments, and no point" for key in sorted(left)]
        letters = deployment.letters.get(deployment.letters.keys(prefix=self.prefix))
        reasons = {key: letter.reason for key, letter in letters.items()}
        for key in sorted(objects | points.keys() | reasons.keys()):
            faults += self._faults(key, store, points.get(key), reasons.get(key))
        return faults

    def _faults(
        self, key: str, store: Any, point: Point | None, found: Reason | None
    ) -> Iterator[str]:
        content = self.truth.get(key)
        bad = self._is_bad(key, content)
        if bad is None:
            bad = found or False  # only decoding tells; then at least it is one or the other
        if bool(found) != bool(bad) or (isinstance(bad, Reason) and found != bad):
            yield f"{key}: letter {found}, not {bad}"
        if bool(point) != (content is not None and is_audio(key) and not bad):
            yield f"{key}: {'a' if point else 'no'} point"
        elif point and content:
            yield from self._wrong(key, store, point, content)

    def _is_bad(self, key: str, content: Content | None) -> Reason | bool | None:
        """Return what must be in the letters; a sidecar counts if it is the one of a sound."""
        if content is None:
            return False
        if is_audio(key):
            return content.bad
        sounds = (each for each in self.truth if is_audio(each))
        return bool(content.bad) and any(self._sidecar_of(sound) == key for sound in sounds)

    def _sidecar_of(self, key: str) -> str | None:
        return next((each for each in sidecar_keys(key) if each in self.truth), None)

    def _wrong(self, key: str, store: Any, point: Point, content: Content) -> Iterator[str]:
        info, sidecar = store.head(key), self._sidecar_of(key)
        metadata = Metadata()
        if sidecar:
            with contextlib.suppress(Rejected):
                metadata = Metadata.from_json(self.truth[sidecar].data)
        metadata = metadata.filled_from(dict(content.words))
        expected = (
            info.etag, store.head(sidecar).etag if sidecar else "", info.modified_ms, info.size,
            metadata.title, metadata.description, list(metadata.keywords), list(metadata.labels),
        )  # fmt: skip
        for name, value in zip(FIELDS, expected, strict=True):
            if point.payload[name] != value:
                yield f"{key}: {name} {point.payload[name]!r}, not {value!r}"
        near = self._nearness(point, content, metadata.text)
        if not near > 0.9999:
            yield f"{key}: another vector, cosine {near}"
        yield from self._wrong_moments(key, point, content, metadata.text)

    def _wrong_moments(self, key: str, point: Point, content: Content, text: str) -> Iterator[str]:
        """Tell what is wrong with a recording's moments; what a kill left is shown to nobody."""
        index = self.deployment.index
        live = index.live()
        count, state = named = moments_named(point.payload, index.grid(live))
        if not names_moments(point.payload, named):
            yield f"{key}: it does not name its {count} moments"
        if not count:
            return
        told = self._moments.get(key, {})
        if told != dict.fromkeys(range(count), state):
            yield f"{key}: moments {told}, not {count} in {state}"
            return
        ids = [moment_id(point.id, number) for number in range(count)]
        found = index.get(live.moments, ids, vectors=True)
        vectors = unit(np.array([found[id_].item for id_ in ids], np.float32))
        near = (vectors * self._heard_moments(content.data, text)).sum(1).min()
        if not near > 0.9999:
            yield f"{key}: a moment has another vector, cosine {near}"

    def _heard_moments(self, data: bytes, text: str) -> Floats:
        """Return the vectors of a recording's moments, computed here and now."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            with open_recording(Path(file.name), 1e9) as recording:
                return hear(self.deployment.encoder, recording.windows(), text, Grid()).vectors

    def _nearness(self, point: Point, content: Content, text: str) -> float:
        """Return the smaller cosine of the point's two vectors to those computed here and now."""
        heard = self._heard(content.data)
        item = self.deployment.encoder.fuse(heard, [text]).vectors[0]
        pairs = ((point.item, item), (point.audio, heard.pooled[0]))
        return min(float(unit(np.array(a, np.float32)) @ unit(b)) for a, b in pairs)

    def _heard(self, data: bytes) -> AudioEmbedding:
        cache = self.deployment.heard
        if data not in cache:
            with tempfile.NamedTemporaryFile() as file:
                file.write(data)
                file.flush()
                with open_recording(
                    Path(file.name), self.deployment.settings.max_duration_s
                ) as recording:
                    cache[data] = self.deployment.encoder.encode_audio(recording.windows())
        return cache[data]


def wave_file(cut: Floats) -> bytes:
    """Return samples as a WAV file, as loud as can be."""
    samples = (cut / max(1e-3, float(np.abs(cut).max())) * 20_000).astype("<i2")
    samples[0] += 1  # digital silence would be rejected
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(samples.tobytes())
    return file.getvalue()
