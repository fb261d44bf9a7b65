"""Scenarios of what nobody should have sent: damaged sounds and events, times out of order."""

import random
import re
import time
from pathlib import Path

from stage import Content, Stage

from audiofuse.core.errors import Reason
from audiofuse.core.items import is_audio

FOREIGN = ("not json", "[]", '{"body": "", "properties": {}}', '{"task": "other"}')
PAST, FUTURE = 0, 4_102_444_800  # 1970 and 2100


def malformed_files(stage: Stage) -> None:
    """Damage sounds of every format: each is indexed or rejected, and no worker dies."""
    for number in range(stage.number(1000)):
        sound = stage.random.choice(stage.sounds)
        data = _damaged(sound.read_bytes(), stage.random, stage.sounds)
        stage.put(f"{stage.prefix}{number:04}{sound.suffix}", Content(data, bad=None))


def _damaged(data: bytes, draw: random.Random, sounds: list[Path]) -> bytes:
    start, end = sorted(draw.sample(range(len(data)), 2))
    other = draw.choice(sounds).read_bytes()
    flipped, header = bytearray(data), bytearray(data)
    for _ in range(draw.choice([1, 8, 64])):
        flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        header[draw.randrange(min(64, len(data)))] = draw.randrange(256)
    return draw.choice(
        [
            data[:end],
            data[start:],
            bytes(flipped),
            bytes(header),
            data[:start] + other[start:],
            data[:start] + bytes(end - start) + data[end:],
            data[:start] + draw.randbytes(min(1000, end - start)) + data[end:],
        ]
    )


def malformed_events(stage: Stage) -> None:
    """Fill the intake's queue with what is no event; the good ones among it arrive."""
    stage.deployment.notify(on=False)
    for number in range(stage.number(1000)):
        if number % 20 == 0:
            good = stage.put(stage.new_key(), stage.sound())
            stage.tell([good])
        else:
            stage.send([_malformed(stage.event(f"{stage.prefix}none.wav"), stage.random)])


def _malformed(body: str, draw: random.Random) -> str:
    start, end = sorted(draw.sample(range(1, len(body)), 2))
    letters = "".join(map(chr, (draw.randrange(32, 0xD7FF) for _ in range(20))))
    value = draw.choice(["null", "[]", "{}", "7", '"x"', "1e999", "-", "[" * 5000, "true"])
    field_name = draw.choice(["Records", "s3", "bucket", "object", "key", "name", "eventName"])
    return draw.choice(
        [
            body[:end],
            body[start:],
            body[:start] + letters + body[end:],
            re.sub(rf'"{field_name}": ("[^"]*"|.)', f'"{field_name}": {value}, "x": ', body),
            body.replace(f'"{field_name}"', '"other"'),
            body.replace("none.wav", letters),
            body.replace("none", "%00%FF%"),
            value,
        ]
    )


def foreign_messages(stage: Stage) -> None:
    """Put what is no message of ours into the lanes; the good ones around it arrive."""
    redis, name = stage.deployment.redis, stage.deployment.settings.index_name
    for number in range(stage.number(30)):
        stage.put(stage.new_key(), stage.sound())
        lane = stage.random.choice(["live", "backfill"])
        redis.lpush(f"{name}:{lane}", FOREIGN[number % len(FOREIGN)])


def archived(stage: Stage) -> None:
    """Put sounds of an archive class among good ones: theirs are the only letters."""
    for number in range(stage.number(40)):
        sound = stage.random.choice(stage.sounds).read_bytes()
        frozen = Content(sound, Reason.UNREADABLE, storage_class="GLACIER")
        stage.put(stage.new_key(), Content(sound) if number % 10 else frozen)


def clock_jumps(stage: Stage) -> None:
    """Take files from past and future, and write over them with others from either."""
    times = [PAST, 1, FUTURE, -86_400, time.time()]
    for key in stage.fill(30):
        stage.put(key, stage.sound() if is_audio(key) else stage.sidecar(), draw_time(stage, times))
    stage.pause(1)
    for key in sorted(stage.truth):
        stage.put(key, stage.sound() if is_audio(key) else stage.sidecar(), draw_time(stage, times))


def draw_time(stage: Stage, times: list[float]) -> float:
    """Return one of the times, and some seconds."""
    return stage.random.choice(times) + stage.random.randrange(1000)


def times_set_back(stage: Stage) -> None:
    """Restore files from a backup, with the times that they had."""
    yesterday, now = time.time() - 86_400, time.time()
    old = {key: stage.truth[key] for key in stage.fill(30)}
    for key in old:
        stage.put(key, stage.sound() if is_audio(key) else stage.sidecar(), now)
    stage.settle()
    for key, content in old.items():
        stage.put(key, content, yesterday)


IN_A_FOLDER = (clock_jumps, times_set_back)
SCENARIOS = (malformed_events, malformed_files, foreign_messages, archived, *IN_A_FOLDER)
