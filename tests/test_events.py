"""Events: what a bucket's notification says, and what has to be looked at because of it."""

import json
from typing import Any
from urllib.parse import quote_plus

import pytest

from workers.events import Event, MalformedEvent, key_to_sync, parse_s3

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
]


def _record(**changes: Any) -> dict[str, Any]:
    """Return a record as AWS sends it."""
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "us-east-1",
        "eventTime": "2026-01-01T00:00:00.000Z",
        "eventName": "ObjectCreated:Put",
        "s3": {
            "bucket": {"name": "sounds", "arn": "arn:aws:s3:::sounds"},
            "object": {"key": "rain.wav", "size": 5, "eTag": "e", "sequencer": "1"},
        },
    } | changes


def _about(key: object, bucket: object = "sounds") -> dict[str, Any]:
    return _record(s3={"bucket": {"name": bucket}, "object": {"key": key}})


def _body(*records: object) -> str:
    return json.dumps({"Records": records})


@pytest.mark.parametrize("key", KEYS)
def test_keys_are_read_as_s3_encodes_them(key: str) -> None:
    """Each key, URL-encoded with a plus for a space, comes back to the letter."""
    assert parse_s3(_body(_about(quote_plus(key)))) == [Event("sounds", key, "ObjectCreated:Put")]


@pytest.mark.parametrize(
    ("encoded", "key"),
    [
        ("a+b.wav", "a b.wav"),
        ("a%20b.wav", "a b.wav"),
        ("a%2Bb.wav", "a+b.wav"),
        ("a%2bb.wav", "a+b.wav"),
        ("a%252Bb.wav", "a%2Bb.wav"),
        ("t%C3%BCr.wav", "tür.wav"),
        ("a/b.wav", "a/b.wav"),
        ("a%2Fb.wav", "a/b.wav"),
    ],
)
def test_an_encoded_key_is_decoded_once(encoded: str, key: str) -> None:
    """Plus is a space, %2B is a plus, and what is encoded twice stays encoded once."""
    (event,) = parse_s3(_body(_about(encoded)))
    assert event.key == key


def test_each_record_is_an_event_in_its_order() -> None:
    """One message may tell of several objects, of several buckets."""
    removed = _about("b.wav", "other") | {"eventName": "ObjectRemoved:Delete"}
    assert parse_s3(_body(_about("a.wav"), removed)) == [
        Event("sounds", "a.wav", "ObjectCreated:Put"),
        Event("other", "b.wav", "ObjectRemoved:Delete"),
    ]


def test_bytes_are_read_like_text() -> None:
    """A body may be handed over as it came from the wire."""
    body = json.dumps({"Records": [_about("räin.wav")]}, ensure_ascii=False)
    assert parse_s3(body.encode()) == parse_s3(body)


def test_the_test_event_is_none() -> None:
    """What S3 sends when notifications are set up names no object and is no error."""
    body = {
        "Service": "Amazon S3",
        "Event": "s3:TestEvent",
        "Time": "2026-01-01T00:00:00.000Z",
        "Bucket": "sounds",
    }
    assert parse_s3(json.dumps(body)) == []


def test_no_records_are_no_events() -> None:
    """An empty notification is an answer, not an error."""
    assert parse_s3(_body()) == []


MALFORMED: dict[str, str | bytes] = {
    "nothing": "",
    "no JSON": "rain.wav",
    "cut off": _body(_record())[:-3],
    "invalid UTF-8": b"\xff\xfe\xfd",
    "null": "null",
    "number": "5",
    "string": '"s3:TestEvent"',
    "list": "[]",
    "no records": "{}",
    "another event": '{"Event": "s3:OtherEvent"}',
    "records are null": '{"Records": null}',
    "records are a number": '{"Records": 5}',
    "records are text": '{"Records": "rain.wav"}',
    "record is null": _body(None),
    "record is text": _body("rain.wav"),
    "record is a list": _body([]),
    "record without s3": _body({"eventName": "ObjectCreated:Put"}),
    "record without a name": _body({"s3": _record()["s3"]}),
    "s3 is null": _body(_record(s3=None)),
    "s3 is empty": _body(_record(s3={})),
    "object is text": _body(_record(s3={"bucket": {"name": "b"}, "object": "rain.wav"})),
    "bucket is text": _body(_record(s3={"bucket": "b", "object": {"key": "rain.wav"}})),
    "key is missing": _body(_record(s3={"bucket": {"name": "b"}, "object": {}})),
    "key is null": _body(_about(None)),
    "key is a number": _body(_about(5)),
    "key is a list": _body(_about(["rain.wav"])),
    "key is a lone surrogate": _body(_about("\ud800.wav")),
    "one of two is broken": _body(_record(), {}),
    "deep nesting": "[" * 100_000,
    "endless integer": '{"Records": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_notification_is_malformed(case: str) -> None:
    """Whatever else the queue holds is one kind of error, whose message stays short."""
    with pytest.raises(MalformedEvent) as caught:
        parse_s3(MALFORMED[case])
    assert len(str(caught.value)) < 500


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
