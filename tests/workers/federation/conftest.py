"""Three deployments, one that has all their items, and a federation of the three."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.index.index import Index, Point, connect_embedded
from audiofuse.core.items import moment_id, point_id
from audiofuse.core.model.relevance import Curve, Relevance
from audiofuse.core.search.loaded import LoadedEncoders
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.workers.federation.app import create_federation
from audiofuse.workers.service.app import create_app

Serving = Callable[[FastAPI], AbstractContextManager[str]]
NAMES = ("field", "music", "city")
COUNT = 330
RECORDING = 11  # of so many sounds one is a recording
WINDOWS = 3
VERSION = "tiny-000000"
CALIBRATION = Relevance(
    worded=Curve(slope=4, offset=-1), wordless=Curve(slope=2, offset=0), nothing_below=0.9
)


def _points(encoder: Encoder, number: int) -> tuple[Point, list[Point]]:
    """Return a sound, and its moments if it is a recording; two in a row have one content."""
    random = np.random.default_rng(number)
    member = NAMES[number % len(NAMES)]
    key = f"{member}/{number:04}.wav"
    id_ = str(point_id(member, key))
    is_long = number % RECORDING == 0
    facts: dict[str, Any] = {
        "bucket": member, "key": key, "etag": f"{number:032x}", "size": 1000 + number,
        "title": f"sound {number}", "description": "", "keywords": [f"k{number % 5}"],
        "labels": ["Dog" if number % 2 else "Cat"], "has_text": "yes" if number % 4 else "no",
        "modified": 1_700_000_000_000 + number // 3 * 40_000_000_000, "encoder": VERSION,
        "duration_s": 5.0 * WINDOWS if is_long else 1.0 + number % 7, "sample_rate": 32_000,
        "channels": 1, "content_hash": f"content-{number // 2}", "item_norm": 1.0,
        "moments": WINDOWS if is_long else 0, "moments_state": "s" if is_long else "",
    }  # fmt: skip

    def vectors() -> tuple[list[float], list[float]]:
        item = random.standard_normal(encoder.dim)
        return (item / np.linalg.norm(item)).tolist(), random.random(encoder.audio_dim).tolist()

    moments = [
        Point(
            moment_id(id_, at),
            facts | {
                "item": id_, "number": at, "start_s": 5.0 * at, "end_s": 5.0 * at + 5, "state": "s",
            },
            *vectors(),
        )
        for at in range(WINDOWS if is_long else 0)
    ]  # fmt: skip
    return Point(id_, facts, *vectors()), moments


def _searcher(encoder: Encoder, numbers: Sequence[int], version: str = VERSION) -> Searcher:
    """Return a searcher of these sounds."""
    index = Index(connect_embedded(), "audiofuse")
    generation = index.create(version, encoder)
    made = [_points(encoder, number) for number in numbers]
    index.upsert(generation, [point for point, _ in made])
    index.upsert(generation.moments, [each for _, moments in made for each in moments])
    calibrated = encoder.with_relevance(CALIBRATION)
    return Searcher(index, LoadedEncoders(_nowhere, {version: calibrated}))


def _nowhere(version: str) -> Encoder:
    raise ConfigurationError(f"no encoder {version} is published")


@pytest.fixture(scope="session")
def member(tiny_encoder: Encoder) -> Callable[..., FastAPI]:
    """Return what makes a deployment of the sounds of these numbers."""

    def app(numbers: Sequence[int], version: str = VERSION, **settings: Any) -> FastAPI:
        made = create_app(_searcher(tiny_encoder, numbers, version), Settings(**settings))
        # FastAPI makes routes at the first request, which two threads must not do at once.
        assert TestClient(made).get("/nothing").status_code == 404
        return made

    return app


@pytest.fixture(scope="session")
def urls(member: Callable[..., FastAPI], serving: Serving) -> Iterator[dict[str, str]]:
    """Serve the members, by their names."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(serving(member(range(at, COUNT, len(NAMES)))))
            for at, name in enumerate(NAMES)
        }


@pytest.fixture(scope="session")
def one(member: Callable[..., FastAPI]) -> Iterator[TestClient]:
    """Return a client of the deployment that has everything."""
    with TestClient(member(range(COUNT))) as client:
        yield client


@pytest.fixture
def asking() -> Iterator[Callable[..., TestClient]]:
    """Return what gives a client of a federation of these members, by their names."""
    with ExitStack() as stack:

        def client(urls: dict[str, str], **settings: Any) -> TestClient:
            ask = ",".join(f"{name}={url}" for name, url in urls.items())
            patient = {"ask_s": 60} | settings  # machines are busy
            app = create_federation(Settings(ask=ask, **patient))
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield client


@pytest.fixture
def all_(asking: Callable[..., TestClient], urls: dict[str, str]) -> TestClient:
    """Return a client of the federation of all members."""
    return asking(urls)
