"""The query service over HTTP: what it answers, whom it lets in, and how it refuses."""

import io
import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from click.testing import Result
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr
from typer.testing import CliRunner

from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError, QueryError, Unavailable
from audiofuse.core.index.index import Index, connect_embedded
from audiofuse.core.search.search import Searcher
from audiofuse.core.search.towers import Towers
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import FolderStore, open_store, s3_client
from audiofuse.workers.commands.main import cli
from audiofuse.workers.indexing.decoding.decoders import Decoders
from audiofuse.workers.indexing.sync import Limits, Syncer
from audiofuse.workers.service.app import check_exposure, create_app
from audiofuse.workers.service.guard import Keys, Rates

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
KEYS = ("music/gong.ogg", "music/cowbell.flac", "music/piano.wav", "animals/owl.wav")
ALL, WORDS = "all-of-it-0123456789", "words-only-0123456789"
API_KEYS = SecretStr(f"all:{ALL}, words:{WORDS}:search")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bucket folder with some sounds, their sidecars, and what is none of it."""
    root = tmp_path_factory.mktemp("service") / "sounds"
    for key in KEYS:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOUNDS / key, root / key)
    for sidecar in ("music/gong.json", "music/piano.wav.json"):
        shutil.copy(SOUNDS / sidecar, root / sidecar)
    (root / "secret.txt").write_text("nobody's business")
    return root


@pytest.fixture(scope="module")
def version(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bundle of the encoder that the service has."""
    return save_bundle(tiny_encoder, tmp_path_factory.mktemp("bundles"), "tiny", "")


@pytest.fixture(scope="module")
def searcher(bucket: Path, version: Path, tiny_encoder: Encoder) -> Iterator[Searcher]:
    """Return a searcher over the bucket, that decodes in another process."""
    index = Index(connect_embedded(), "audiofuse")
    generation = index.create(version.name, tiny_encoder)
    syncer = Syncer(FolderStore(bucket), index, generation, tiny_encoder, Limits(60, 10**7))
    for key in KEYS:
        syncer.sync(key)
    decoders = Decoders(1, 30)
    yield Searcher(index, Towers(_nowhere, {version.name: tiny_encoder}), open_sound=decoders.open)
    decoders.close()


def _nowhere(version: str) -> Encoder:
    raise ConfigurationError(f"no encoder {version} is published")


@pytest.fixture
def client(searcher: Searcher, bucket: Path, version: Path) -> TestClient:
    """Return a client of a service that is open to everybody."""
    return _client(searcher, bucket=str(bucket), encoder=version)


def _client(searcher: Searcher, **settings: Any) -> TestClient:
    app = create_app(searcher, Settings(**settings))
    return TestClient(app, raise_server_exceptions=False)


def _problem(answer: httpx.Response, status: int, kind: str) -> str:
    """Return the detail of a problem, which must be the expected one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem.keys() == {"type", "title", "status", "detail"}
    assert (problem["status"], problem["type"].rpartition(":")[2]) == (status, kind)
    return str(problem["detail"])


def _keys(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [hit["key"] for hit in answer.json()["hits"]]


def test_a_search_answers_in_json(client: TestClient, version: Path) -> None:
    """Hits come with their parts, what is public of their payload, and where to hear them."""
    found = client.get("/v1/search", params={"q": "a gong", "limit": 2}).json()
    assert found["encoder"] == version.name
    assert len(found["hits"]) == 2
    hit = found["hits"][0]
    assert hit.keys() == {
        "id", "key", "score", "audio", "metadata", "copies", "audio_url", "payload",
    }  # fmt: skip
    assert hit["audio"] + hit["metadata"] == pytest.approx(hit["score"])
    assert {"title", "keywords", "labels", "duration_s", "modified"} <= hit["payload"].keys()
    assert not hit["payload"].keys() & {"item_norm", "user_metadata_hash", "sidecar_etag"}


def test_every_way_to_ask_gives_the_same_ranking(client: TestClient) -> None:
    """Query parameters and JSON are one language; similar and POST's like are one question."""
    options = {"q": "a gong", "limit": 3, "prefix": "music/", "balance": 0.4}
    by_get = client.get("/v1/search", params=options)
    assert _keys(by_get) == _keys(client.post("/v1/search", json=options))
    id_ = by_get.json()["hits"][0]["id"]
    similar = _keys(client.get(f"/v1/similar/{id_}"))
    assert similar == _keys(client.post("/v1/search", json={"like": id_}))
    assert len(similar) == 3


def test_filters_are_said_in_the_address(client: TestClient) -> None:
    """Tags may be repeated, days bound the modification, and text may be asked for or not."""

    def ask(**options: Any) -> list[str]:
        return sorted(_keys(client.get("/v1/search", params={"q": "a", **options})))

    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert ask(keyword=["gong", "metal"]) == ["music/gong.ogg"]
    assert ask(has_text="no", prefix="music/") == ["music/cowbell.flac"]
    assert ask(since="2020-01-01", until=today, label="Gong") == ["music/gong.ogg"]
    assert ask(until="2020-01-01") == []
    assert len(ask(until="9999-12-31", min_duration=0.01, max_duration=100)) == 4
    assert ask(bucket="another") == []


def test_a_sound_is_searched_by(client: TestClient, bucket: Path) -> None:
    """The body is a sound file, decoded in another process; itself is what it finds first."""
    content = (bucket / "music/gong.ogg").read_bytes()
    answer = client.post("/v1/search/sound", params={"limit": 2}, content=content)
    assert _keys(answer)[0] == "music/gong.ogg"
    assert answer.json()["hits"][0]["score"] == pytest.approx(1, abs=1e-3)
    with_words = client.post("/v1/search/sound", params={"q": "a gong"}, content=content)
    assert len(_keys(with_words)) == 4


def test_items_are_told(client: TestClient, version: Path) -> None:
    """How many there are, one of them, and a text's vector in their space."""
    assert client.get("/v1/items").json() == {"items": 4, "encoder": version.name}
    hit = client.get("/v1/search", params={"q": "a gong"}).json()["hits"][0]
    item = client.get(f"/v1/items/{hit['id']}").json()
    assert (item["key"], item["payload"]) == (hit["key"], hit["payload"])
    embedded = client.get("/v1/embed", params={"q": "a gong"}).json()
    assert embedded["encoder"] == version.name
    assert sum(x * x for x in embedded["vector"]) == pytest.approx(1, abs=1e-5)


def test_sounds_of_a_folder_are_heard_by_signed_links(client: TestClient, bucket: Path) -> None:
    """The link of a hit gives the file, whole or in part; nothing else of the folder is given."""
    hit = client.get("/v1/search", params={"q": "gong", "keyword": "gong"}).json()["hits"][0]
    content = (bucket / hit["key"]).read_bytes()
    whole = client.get(hit["audio_url"])
    assert whole.content == content
    part = client.get(hit["audio_url"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    for other in ("music/piano.wav", "secret.txt", "../bundles", "music/../secret.txt"):
        forged = hit["audio_url"].replace("music/gong.ogg", other)
        assert client.get(forged).status_code in {403, 404}
    _problem(client.get(hit["audio_url"] + "0"), 403, "expired")


def test_a_link_expires(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its hour a link is refused, and says to search again."""
    url = client.get("/v1/search", params={"q": "gong"}).json()["hits"][0]["audio_url"]
    now = time.time()
    monkeypatch.setattr("audiofuse.workers.service.audio.time.time", lambda: now + 3599)
    assert client.get(url).status_code == 200
    monkeypatch.setattr("audiofuse.workers.service.audio.time.time", lambda: now + 3601)
    assert "search again" in _problem(client.get(url), 403, "expired")


def test_a_deleted_sound_is_not_found(client: TestClient, bucket: Path) -> None:
    """A link outlives its file for a while, and says so."""
    url = client.get("/v1/search", params={"q": "a", "prefix": "animals/"}).json()["hits"][0]
    (bucket / "animals/owl.wav").rename(bucket / "animals/moved")
    try:
        assert "deleted" in _problem(client.get(url["audio_url"]), 404, "not-found")
    finally:
        (bucket / "animals/moved").rename(bucket / "animals/owl.wav")


def test_sounds_of_s3_are_heard_by_presigned_links(
    searcher: Searcher, aws_settings: Settings
) -> None:
    """The link leads to the bucket itself, and names when it ends; the page may load it."""
    name = aws_settings.bucket.removeprefix("s3://")
    s3_client(aws_settings).put_object(Bucket=name, Key="a b/ü.wav", Body=b"a sound")
    url = open_store(aws_settings).link("a b/ü.wav", 60)  # type: ignore[attr-defined]
    assert httpx.get(url).content == b"a sound"
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["60"]
    public = {"s3_public_url": "https://sounds.example"}
    client = _client(searcher, **aws_settings.model_dump() | public)
    policy = client.get("/healthz").headers["content-security-policy"]
    assert "media-src 'self' blob: https://sounds.example;" in policy
    hits = client.get("/v1/search", params={"q": "a gong"}).json()["hits"]
    assert {hit["audio_url"] for hit in hits} == {None}  # they are of another bucket


def test_the_query_tower_can_be_fetched(client: TestClient, version: Path) -> None:
    """The tower of a loaded version comes as a ZIP file that equals the bundle's folder."""
    answer = client.get(f"/v1/encoders/{version.name}/query.zip")
    assert "immutable" in answer.headers["cache-control"]
    packed = zipfile.ZipFile(io.BytesIO(answer.content))
    for path in (version / "query").rglob("*.*"):
        assert packed.read(path.relative_to(version / "query").as_posix()) == path.read_bytes()
    for other in ("tiny-111111", "..", "%2e%2e"):
        assert client.get(f"/v1/encoders/{other}/query.zip").status_code == 404


def test_it_tells_whether_it_is_alive_and_ready(
    client: TestClient, searcher: Searcher, version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ready for versions that are loaded, while the index answers; alive it is anyway."""
    assert client.get("/readyz").json() == {"loaded": [version.name], "index": "answers"}
    assert client.get("/readyz", params={"version": version.name}).status_code == 200
    assert client.get("/readyz", params={"version": "other-111111"}).status_code == 503
    monkeypatch.setattr(searcher._index, "live", _away)
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def _away(*_: object, **__: object) -> None:
    raise Unavailable("Qdrant does not answer at http://10.1.2.3:6333: secret-host")


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({}, "q: Field required"),
        ({"q": ""}, "no words"),
        ({"q": "?!"}, "no words"),
        ({"q": "x" * 1001}, "q: "),
        ({"q": "a", "frobnicate": "1"}, "frobnicate"),
        ({"q": "a", "limit": "0"}, "limit"),
        ({"q": "a", "limit": "many"}, "limit"),
        ({"q": "a", "offset": "9999", "limit": "2"}, "narrow"),
        ({"q": "a", "balance": "nan"}, "balance"),
        ({"q": "a", "min_duration": "inf"}, "min_duration"),
        ({"q": "a", "since": "yesterday"}, "since"),
        ({"q": "a", "has_text": "perhaps"}, "has_text"),
        ({"q": "a", "keyword": ["x"] * 21}, "keyword"),
    ],
)
def test_a_bad_question_is_a_problem_that_names_it(
    client: TestClient, parameters: dict[str, Any], told: str
) -> None:
    """Each parameter that cannot be meant is named in words."""
    assert told in _problem(client.get("/v1/search", params=parameters), 422, "bad-question")


@pytest.mark.parametrize(
    "text",
    [
        "ein Hund bellt", "собака лает", "犬が吠える", "🐕", "a\x00b", "a" * 1000,
        "'; DROP TABLE items; --", "<script>alert(1)</script>", "{{7*7}} ${jndi:ldap://x}",
        "\u202e",
    ],
)  # fmt: skip
def test_any_words_are_an_ordinary_question(client: TestClient, text: str) -> None:
    """Other languages, control characters and injected code are read as words, or have none."""
    answer = client.get("/v1/search", params={"q": text})
    assert answer.status_code == 200 or "no words" in _problem(answer, 422, "bad-question")
    posted = client.post("/v1/search", json={"q": text})
    assert posted.status_code == answer.status_code


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"q": 1}', b'{"q": "\\ud800"}', b'{"q": "a", "limit": 1e9}',
     b'{"q": "a", "balance": NaN}', b'{"like": "../../etc"}', b"[" * 50_000,
     b'{"like": "6ba7b810-9dad-51d1-80b4-00c04fd430c8", "x": 1}'],
)  # fmt: skip
def test_a_body_that_is_no_question_is_a_problem(client: TestClient, body: bytes) -> None:
    """Whatever is posted ends as a problem, and the service goes on."""
    answer = client.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.json()["detail"]
    assert client.get("/v1/search", params={"q": "a gong"}).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"no sound", "not-audio"),
        (b"\0" * 10_000, "not-audio"),
        ((SOUNDS / "music/cowbell.flac").read_bytes()[:5000], "damaged"),
    ],
)
def test_a_sound_that_cannot_be_heard_is_a_problem(
    client: TestClient, content: bytes, kind: str
) -> None:
    """The reason is the problem's type, and nothing of our files is told."""
    answer = client.post("/v1/search/sound", content=content)
    assert "/tmp" not in _problem(answer, 422, kind)


def test_silence_and_long_sounds_are_refused(client: TestClient) -> None:
    """Nothing can sound like silence, and a sound to search by has a minute at most."""
    assert "silent" in _problem(_post_wave(client, 1), 422, "silent")
    assert "60 s" in _problem(_post_wave(client, 61), 422, "too-long")


def _post_wave(client: TestClient, seconds: int) -> httpx.Response:
    size = seconds * 8000  # 8 kHz, 8 bit, mono; 128 is zero
    header = b"RIFF%sWAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0@\x1f\0\0\1\0\x08\0data%s"
    header %= (size + 36).to_bytes(4, "little"), size.to_bytes(4, "little")
    return client.post("/v1/search/sound", content=header + b"\x80" * size)


def test_an_unknown_item_is_not_found(client: TestClient) -> None:
    """An id without an item is a 404, and what is no id is said to be none."""
    unknown = "6ba7b810-9dad-51d1-80b4-00c04fd430c8"
    for path in ("items", "similar"):
        assert unknown in _problem(client.get(f"/v1/{path}/{unknown}"), 404, "not-found")
        _problem(client.get(f"/v1/{path}/gong.ogg"), 422, "bad-question")
    _problem(client.post("/v1/search", json={"like": unknown}), 404, "not-found")
    _problem(client.get("/v1/nothing"), 404, "not-found")
    _problem(client.delete("/v1/search"), 405, "method-not-allowed")


def test_a_stopped_index_is_told_without_its_address(
    client: TestClient, searcher: Searcher, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """While the index is away the answer is 503 with when to come back; where it is, is logged."""
    with monkeypatch.context() as patch:
        patch.setattr(searcher._index, "search", _away)
        answer = client.get("/v1/search", params={"q": "a gong"})
    assert "10.1.2.3" not in _problem(answer, 503, "unavailable") + str(answer.headers)
    assert answer.headers["retry-after"] == "5"
    assert "10.1.2.3" in caplog.text
    assert client.get("/v1/search", params={"q": "a gong"}).status_code == 200


def test_a_bug_tells_nothing_of_our_insides(
    client: TestClient, searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception is a plain 500, and its message stays here."""

    def fail(*_: object) -> None:
        raise RuntimeError("password hunter2")

    monkeypatch.setattr(searcher, "search", fail)
    answer = client.get("/v1/search", params={"q": "a gong"})
    assert "hunter2" not in _problem(answer, 500, "bug")


def test_too_large_bodies_are_refused_before_they_are_read(
    searcher: Searcher, serving: Callable[[FastAPI], AbstractContextManager[str]], tmp_path: Path
) -> None:
    """What its header says, or what arrives, may be no more than the limit; 2 GB never arrive."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(2000):
            sent += 1024**2
            yield bytes(1024**2)

    settings = Settings(home=tmp_path, max_query_bytes=10_000)
    with serving(create_app(searcher, settings)) as url, httpx.Client(base_url=url) as client:
        _problem(client.post("/v1/search/sound", content=bytes(10_001)), 413, "too-large")
        _problem(client.post("/v1/search", content=bytes(70_000)), 413, "too-large")
        try:
            answer = client.post("/v1/search/sound", content=endless())
        except httpx.TransportError:
            pass  # it was hung up on, before it looked for an answer
        else:
            _problem(answer, 413, "too-large")
        assert sent < 200 * 1024**2
        assert client.get("/v1/search", params={"q": "a gong"}).status_code == 200


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_without_a_valid_key_nothing_is_told(searcher: Searcher, bucket: Path) -> None:
    """A missing, wrong or misplaced key is a 401 on every route of the API; probes need none."""
    client = _client(searcher, bucket=str(bucket), api_keys=API_KEYS)
    wrong: list[Any] = [
        {}, _bearer("x" * 20), _bearer(ALL[:-1]), _bearer(""), {"Authorization": f"Basic {ALL}"},
        {"Authorization": ALL}, {"Authorization": "Bearer \xe9".encode("latin-1")},
    ]  # fmt: skip
    for path in ("search?q=a", "search", "items", "embed?q=a", "encoders/x/query.zip", "nothing"):
        for headers in wrong:
            answer = client.get(f"/v1/{path}", headers=headers)
            assert "Bearer" in _problem(answer, 401, "no-key")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert client.post("/v1/search/sound", content=b"x").status_code == 401
    assert client.get("/readyz").status_code == 200
    assert client.get("/v1/search", params={"q": "a"}, headers=_bearer(ALL)).status_code == 200


def test_a_key_is_needed_wherever_it_is_mounted(searcher: Searcher, bucket: Path) -> None:
    """Under another path of another application the API is guarded, and links lead there."""
    outer = FastAPI()
    outer.mount("/sounds", create_app(searcher, Settings(bucket=str(bucket), api_keys=API_KEYS)))
    client = TestClient(outer)
    for path in ("/sounds/v1/items", "/sounds//v1/items", "/sounds/%76%31/items"):
        assert client.get(path).status_code in {401, 404}
    answer = client.get("/sounds/v1/search", params={"q": "a gong"}, headers=_bearer(ALL))
    url = answer.json()["hits"][0]["audio_url"]
    assert url.startswith("/sounds/v1/audio/")
    assert client.get(url).status_code == 200


def test_only_the_scope_audio_gets_links(searcher: Searcher, bucket: Path) -> None:
    """A key for searching alone sees no link; the link itself then needs no key."""
    client = _client(searcher, bucket=str(bucket), api_keys=API_KEYS)

    def links(key: str) -> set[Any]:
        answer = client.get("/v1/search", params={"q": "a gong"}, headers=_bearer(key))
        return {hit["audio_url"] for hit in answer.json()["hits"]}

    assert links(WORDS) == {None}
    heard = links(ALL)
    assert len(heard) == 4
    assert client.get(heard.pop()).status_code == 200


@pytest.mark.parametrize(
    "listed", ["short:abc", "x" * 30, ":" + "x" * 30, f"name:{ALL}:search+write"]
)
def test_keys_that_cannot_be_meant_stop_the_service(listed: str) -> None:
    """A key without a name, a short one or an unknown scope is a wrong setting; no key is shown."""
    with pytest.raises(ConfigurationError, match="AUDIOFUSE_API_KEYS") as error:
        Keys(SecretStr(listed))
    assert "xxx" not in str(error.value)
    assert ALL not in str(error.value)


@pytest.mark.parametrize(
    ("host", "keys", "is_open", "allowed"),
    [
        ("127.0.0.1", None, False, True),
        ("localhost", None, False, True),
        ("::1", None, False, True),
        ("0.0.0.0", None, False, False),
        ("sounds.example", None, False, False),
        ("0.0.0.0", API_KEYS, False, True),
        ("0.0.0.0", None, True, True),
    ],
)
def test_an_open_service_listens_to_this_machine_only(
    host: str, keys: SecretStr | None, *, is_open: bool, allowed: bool
) -> None:
    """Without keys no other machine is listened to, unless that is said."""
    if allowed:
        check_exposure(host, Settings(api_keys=keys), is_open=is_open)
    else:
        with pytest.raises(ConfigurationError, match="--open"):
            check_exposure(host, Settings(api_keys=keys), is_open=is_open)


def test_who_asks_too_often_waits(searcher: Searcher) -> None:
    """Beyond its rate a key gets 429 and when to come back; another key is not concerned."""
    client = _client(searcher, api_keys=API_KEYS, rate_limit=0.5)
    statuses = [client.get("/v1/items", headers=_bearer(ALL)).status_code for _ in range(4)]
    assert statuses == [200, 200, 429, 429]
    answer = client.get("/v1/items", headers=_bearer(ALL))
    _problem(answer, 429, "too-often")
    assert 1 <= int(answer.headers["retry-after"]) <= 2
    assert client.get("/v1/items", headers=_bearer(WORDS)).status_code == 200
    guesses = [client.get("/v1/items", headers=_bearer("x" * 20)).status_code for _ in range(4)]
    assert guesses == [401, 401, 429, 429]


def test_rates_recover_and_forget() -> None:
    """Tokens come back with time, and no more senders are remembered than fit."""
    rates = Rates(2, remembered=100)
    assert [rates.take("a", 0) for _ in range(10)] == [0] * 10
    assert rates.take("a", 0) == pytest.approx(0.5)
    assert rates.take("a", 0.5) == 0
    for number in range(10_000):
        rates.take(str(number), 1)
    assert rates.senders == 100


def test_other_pages_may_ask_only_where_they_are_listed(searcher: Searcher) -> None:
    """CORS is off by default; a listed origin may send its key, another may not."""
    asking = {
        "Origin": "https://a.example", "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization",
    }  # fmt: skip
    name = "access-control-allow-origin"
    assert name not in _client(searcher).options("/v1/items", headers=asking).headers
    listing = _client(searcher, cors_origins="https://b.example, https://a.example",
                      api_keys=API_KEYS)  # fmt: skip
    preflight = listing.options("/v1/items", headers=asking)
    assert (preflight.status_code, preflight.headers[name]) == (200, "https://a.example")
    refused = listing.get("/v1/items", headers={"Origin": "https://a.example"})
    assert (refused.status_code, refused.headers[name]) == (401, "https://a.example")
    other = listing.options("/v1/items", headers=asking | {"Origin": "https://c.example"})
    assert name not in other.headers


def test_answers_are_safe_in_a_browser(client: TestClient) -> None:
    """Nothing is loaded from elsewhere or guessed, what is private is not stored."""
    headers = client.get("/v1/items").headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert "server" not in headers


def test_every_route_is_described(client: TestClient) -> None:
    """OpenAPI names each route with a summary, an example where words are asked, and problems."""
    described = client.get("/openapi.json").json()
    assert {
        "/v1/search", "/v1/search/sound", "/v1/similar/{id}", "/v1/items", "/v1/items/{id}",
        "/v1/embed", "/v1/encoders/{version}/query.zip", "/healthz", "/readyz",
    } <= described["paths"].keys()  # fmt: skip
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            assert route.get("description"), (path, method)
            if path.startswith("/v1"):
                assert any(code.startswith("4") for code in route["responses"]), path
    assert re.search(r'"a dog barking"', json.dumps(described))
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(described)))
    assert references <= described["components"]["schemas"].keys()


@pytest.fixture
def run(
    searcher: Searcher, bucket: Path, monkeypatch: pytest.MonkeyPatch,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
) -> Iterator[Callable[..., Result]]:  # fmt: skip
    """Return what runs ``audiofuse search`` against a service that needs a key."""
    monkeypatch.setenv("AUDIOFUSE_BUCKET", str(bucket))
    monkeypatch.setenv("AUDIOFUSE_SEARCH_KEY", ALL)
    with serving(create_app(searcher, Settings(bucket=str(bucket), api_keys=API_KEYS))) as url:
        monkeypatch.setenv("AUDIOFUSE_SEARCH_URL", f"http://127.0.0.1:9, {url}")
        yield lambda *words: CliRunner().invoke(cli, ["search", *words], env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a gong", "--keyword", "gong", "--keyword", "metal"], ["music/gong.ogg"]),
        (["a gong", "--label", "Gong", "--with-text", "--since", "2020-01-01"], ["music/gong.ogg"]),
        (["a gong", "--without-text", "--prefix", "music/"], ["music/cowbell.flac"]),
        (["a gong", "--until", "2020-01-01"], []),
        (["a gong", "--min-duration", "1000"], []),
        (["--sound", str(SOUNDS / "animals/owl.wav"), "--limit", "1"], ["animals/owl.wav"]),
        (["--sound", str(SOUNDS / "animals/owl.wav"), "--offset", "4"], []),
    ],
)
def test_the_command_asks_as_it_is_told(
    run: Callable[..., Result], words: list[str], expected: list[str]
) -> None:
    """Each option reaches the first service that answers, which has the last word."""
    found = json.loads(run(*words, "--json").stdout)
    assert [hit["key"] for hit in found["hits"]] == expected
    table = run(*words).stdout
    assert all(key in table for key in expected)
    assert ("nothing is found" in table) == (not expected)


def test_the_command_finds_what_is_like_a_key(run: Callable[..., Result]) -> None:
    """An item is named by its key, takes words and a balance besides, and is not found itself."""
    words = ["a gong", "--like", "music/gong.ogg", "--balance", "0.3", "--without", "piano"]
    keys = [hit["key"] for hit in json.loads(run(*words, "--unique", "--json").stdout)["hits"]]
    assert sorted(keys) == sorted(set(KEYS) - {"music/gong.ogg"})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no words"),
        (["--like", "nothing.wav"], "no item"),
        (["--sound", "/does/not/exist.wav"], "/does/not/exist.wav"),
        (["--sound", __file__], "no decoder"),
        (["--sound", __file__, "--like", "x.wav"], "exclude each other"),
        (["a", "--limit", "1000", "--offset", "9999"], "10000"),
    ],
)
def test_the_command_says_why_it_is_refused(
    run: Callable[..., Result], words: list[str], told: str
) -> None:
    """What the service refuses is told in its words."""
    refused = run(*words).exception
    assert isinstance(refused, QueryError)
    assert told in str(refused)


def test_a_wrong_key_names_its_setting(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its key the command says which setting is wrong."""
    monkeypatch.setenv("AUDIOFUSE_SEARCH_KEY", "another-key-0123456789")
    refused = run("a gong").exception
    assert isinstance(refused, ConfigurationError)
    assert "AUDIOFUSE_SEARCH_KEY" in str(refused)
    assert "another-key" not in str(refused)


# A question may be well-formed and mean nothing: "?!" has no words, text is no sound.
SCHEMATHESIS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 422]
"""


@pytest.mark.timeout(240)
def test_nothing_is_found_by_its_own_description(
    searcher: Searcher, bucket: Path, version: Path, tmp_path: Path,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
) -> None:  # fmt: skip
    """What schemathesis makes of our OpenAPI, sense and nonsense, is answered as described."""
    (tmp_path / "schemathesis.toml").write_text(SCHEMATHESIS)
    program = Path(sys.executable).with_name("schemathesis")
    options = ["--exclude-path", "/readyz"]  # whose 503 is an answer
    options += ["--max-examples", "20", "--seed", "1", "--no-color"]
    settings = Settings(bucket=str(bucket), encoder=version)
    with serving(create_app(searcher, settings)) as url:
        done = subprocess.run(
            [program, "run", f"{url}/openapi.json", *options],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
