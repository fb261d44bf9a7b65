"""Events: what each storage's notification says, and what has to be looked at because of it."""

import json
import random
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from audiofuse.workers.intake.events import MAX_MESSAGE_BYTES, Dropped, Event, key_to_sync, parse
from audiofuse.workers.telemetry.names import Flaw

CORPUS = json.loads((Path(__file__).parents[3] / "tests" / "data" / "events.json").read_text())
FUZZED = 1000

KEYS = [
    "rain.wav",
    "field recordings/rain heavy.wav",
    "rain+heavy.wav",
    "rain%20heavy.wav",
    "rain%2Bheavy.wav",
    "100%.wav",
    "räin/雨 \N{CLOUD WITH RAIN}.wav",
    "ra\u0308in.wav",  # the same letters, decomposed
    "a&b=c?d#e;f:g\\h'i\"j<k>.wav",
    "a//b/./c.wav",
    "a/b/../c.wav",
]


def _record(**changes: Any) -> dict[str, Any]:
    """Return a record as AWS sends it."""
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "sounds"}, "object": {"key": "rain.wav", "sequencer": "1"}},
    } | changes


def _about(key: object, source: str = "aws:s3") -> dict[str, Any]:
    return _record(s3={"bucket": {"name": "sounds"}, "object": {"key": key}}, eventSource=source)


def _body(*records: object) -> str:
    return json.dumps({"Records": records})


def _keys(body: str) -> list[str]:
    events = parse(body)
    assert all(isinstance(each, Event) for each in events), events
    return [each.key for each in events if isinstance(each, Event)]


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case["says"])
def test_every_dialect_is_understood(case: dict[str, Any]) -> None:
    """A message as each storage documents it yields exactly the objects that it speaks of."""
    expected = [Event(*fields) for fields in case["events"]]
    assert parse(json.dumps(case["body"])) == expected
    assert parse(json.dumps(case["body"], ensure_ascii=False).encode()) == expected


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("encode", [quote_plus, quote, lambda key: quote(key, safe="")])
def test_encoded_keys_come_back_to_the_letter(key: str, encode: Any) -> None:
    """However a storage URL-encodes a key, a plus or %20 for a space, %2F or a slash."""
    for source in ("aws:s3", "minio:s3", "rustfs:s3"):
        assert _keys(_body(_about(encode(key), source))) == [key]


@pytest.mark.parametrize("key", KEYS)
def test_raw_keys_stay_as_they_are(key: str) -> None:
    """Ceph, EventBridge and SeaweedFS send keys raw: a plus or percent sign in them survives."""
    assert _keys(_body(_about(key, "ceph:s3"))) == [key]
    detail = {"bucket": {"name": "sounds"}, "object": {"key": key}}
    assert _keys(json.dumps({"detail-type": "Object Created", "detail": detail})) == [key]
    assert _keys(json.dumps({"event_type": "create", "key": f"/buckets/sounds/{key}"})) == [key]


@pytest.mark.parametrize("key", KEYS)
def test_an_unknown_source_is_read_both_ways(key: str) -> None:
    """Whether an unknown storage encodes keys or not, the right key is among those handed over."""
    assert key in _keys(_body(_about(key, "new:s3")))
    assert key in _keys(_body(_about(quote_plus(key), "new:s3")))


def test_an_encoded_key_is_decoded_once() -> None:
    """What is encoded twice stays encoded once."""
    assert _keys(_body(_about("a%252Bb.wav"))) == ["a%2Bb.wav"]


MALFORMED: dict[str, str | bytes] = {
    "nothing": "",
    "no JSON": "rain.wav",
    "cut off": _body(_record())[:-3],
    "invalid UTF-8": b"\xff\xfe\xfd",
    "null": "null",
    "number": "5",
    "string": '"s3:TestEvent"',
    "no records": "{}",
    "another event": '{"Event": "s3:OtherEvent"}',
    "records are null": '{"Records": null}',
    "records are text": '{"Records": "rain.wav"}',
    "record is null": _body(None),
    "record is text": _body("rain.wav"),
    "record is a list": _body([]),
    "record without s3": _body({"eventName": "ObjectCreated:Put"}),
    "record without a name": _body({"s3": _record()["s3"]}),
    "s3 is null": _body(_record(s3=None)),
    "object is text": _body(_record(s3={"bucket": {"name": "b"}, "object": "rain.wav"})),
    "bucket is text": _body(_record(s3={"bucket": "b", "object": {"key": "rain.wav"}})),
    "bucket is a number": _body(_record(s3={"bucket": {"name": 5}, "object": {"key": "a.wav"}})),
    "key is missing": _body(_record(s3={"bucket": {"name": "b"}, "object": {}})),
    "key is null": _body(_about(None)),
    "key is a number": _body(_about(5)),
    "key is a list": _body(_about(["rain.wav"])),
    "list of numbers": "[1, 2]",
    "SNS with no JSON inside": '{"Type": "Notification", "Message": "hello"}',
    "SNS with null": '{"Type": "Notification", "Message": null}',
    "EventBridge without detail": '{"detail-type": "Object Created"}',
    "SeaweedFS without key": '{"event_type": "create"}',
    "deep nesting": "[" * 100_000,
    "deep nesting in a record": _body(1).replace("1", '{"a":' * 50_000 + "1" + "}" * 50_000),
    "endless integer": '{"Records": ' + "9" * 5000 + "}",
}

BAD_KEYS = {
    "lone surrogate": "\ud800.wav",
    "encoded, no UTF-8": "%FF%FE.wav",
    "NUL": "a\0.wav",
    "encoded NUL": "a%00.wav",
    "empty": "",
    "too long": "a" * 1025 + ".wav",
    "above the bucket": "../rain.wav",
    "above the bucket, encoded": "a%2F..%2F..%2Frain.wav",
}


def _flaw(body: str | bytes) -> Flaw:
    (dropped,) = parse(body)
    assert isinstance(dropped, Dropped)
    assert len(str(dropped)) < 1000
    assert str(dropped).isprintable()
    return dropped.flaw


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_notification_is_malformed(case: str) -> None:
    """Whatever else a queue holds is told apart, in words that stay short and can be logged."""
    assert _flaw(MALFORMED[case]) is Flaw.MALFORMED


@pytest.mark.parametrize("case", BAD_KEYS)
def test_a_key_that_names_no_object_is_dropped(case: str) -> None:
    """No key that S3 would not allow, or that leads out of its bucket, gets any further."""
    assert _flaw(_body(_about(BAD_KEYS[case]))) is Flaw.BAD_KEY


def test_an_oversized_message_is_not_even_parsed() -> None:
    """A message larger than any storage sends is dropped by its size."""
    assert _flaw(" " * (MAX_MESSAGE_BYTES + 1)) is Flaw.TOO_LARGE
    assert _keys(_body(_record()) + " " * (MAX_MESSAGE_BYTES - 1000)) == ["rain.wav"]


def test_a_broken_record_does_not_take_its_neighbours_along() -> None:
    """Of three records, the one that is broken is dropped and both others are events."""
    first, broken, last = parse(_body(_about("a.wav"), {}, _about("b.wav")))
    assert isinstance(broken, Dropped)
    assert (first, last) == (
        Event("sounds", "a.wav", "ObjectCreated:Put"),
        Event("sounds", "b.wav", "ObjectCreated:Put"),
    )


def _mutated(value: Any, draw: random.Random) -> Any:
    """Return JSON in which something is of another type, gone, doubled, hostile, or deep."""
    if draw.random() < 0.07:
        junk = (
            None, True, -1, 10**40, 1e308, "", "\0", "\ud800", "../../x.wav", "%", "%FF", [], {},
            [[[]]], {"key": {}}, "a" * 3000, "s3:TestEvent", "Notification", '{"Records": [1]}',
        )  # fmt: skip
        return draw.choice(junk)
    if isinstance(value, dict):
        kept = [(k, v) for k, v in value.items() if draw.random() > 0.03]
        return {k: _mutated(v, draw) for k, v in kept}
    if isinstance(value, list):
        return [_mutated(each, draw) for each in value] * draw.choice([1, 1, 1, 2])
    return value


def test_fuzzed_messages_never_stop_the_parser() -> None:
    """A thousand messages, mangled as JSON and as bytes, come back as events or as dropped."""
    draw = random.Random(0)
    found: list[Event | Dropped] = []
    for _ in range(FUZZED):
        body = json.dumps(_mutated(draw.choice(CORPUS)["body"], draw)).encode()
        if draw.random() < 0.3:
            place = draw.randrange(len(body) + 1)
            body = body[:place] + draw.randbytes(draw.randrange(4)) + body[place + 1 :]
        found += parse(body)
    events = [each for each in found if isinstance(each, Event)]
    flaws = {each.flaw for each in found if isinstance(each, Dropped)}
    assert len(events) > FUZZED / 10
    assert flaws == {Flaw.MALFORMED, Flaw.BAD_KEY}
    for event in events:
        assert event.key.encode()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ObjectCreated:Put", True),
        ("s3:ObjectCreated:CompleteMultipartUpload", True),
        ("ObjectRemoved:DeleteMarkerCreated", True),
        ("LifecycleExpiration:Delete", True),
        ("ObjectRestore:Completed", True),
        ("Object Created", True),
        ("create", True),
        ("SomethingNew", True),
        ("s3:ObjectCreated:PutTagging", False),
        ("s3:ObjectCreated:PutLegalHold", False),
        ("s3:ObjectAccessed:Get", False),
        ("s3:ObjectAccessed:Head", False),
        ("ObjectTagging:Put", False),
        ("ObjectAcl:Put", False),
        ("Object Tags Added", False),
    ],
)
def test_events_after_which_the_sound_is_the_same_are_known(name: str, changes: bool) -> None:  # noqa: FBT001 - a row of the table
    """Tags, rights, and the worker's own reading change no sound; whatever is unknown may."""
    assert Event("sounds", "rain.wav", name).changes_sound is changes


@pytest.mark.parametrize(
    ("changed", "to_sync"),
    [
        ("rain.wav", "rain.wav"),
        ("a b/räin.FLAC", "a b/räin.FLAC"),
        ("rain.wav.json", "rain.wav"),
        ("a/rain.take.2.mp3.json", "a/rain.take.2.mp3"),
        ("RAIN.WAV.json", "RAIN.WAV"),
        ("rain.json", "rain.json"),
        ("rain.take.json", "rain.take.json"),
        ("rain.txt.json", "rain.txt.json"),
        ("rain.txt", None),
        ("rain.wav.part", None),
        ("rain", None),
        ("folder/", None),
        ("", None),
        (".rain.wav", None),
        ("a/._rain.wav", None),
        (".rain.wav.json", None),
        (".json", None),
        ("rain.wav.json.bak", None),
    ],
)
def test_a_changed_object_tells_what_to_sync(changed: str, to_sync: str | None) -> None:
    """Sound: itself; sidecar of one sound: that; of a stem: itself, to be asked; else nothing."""
    assert key_to_sync(changed) == to_sync
