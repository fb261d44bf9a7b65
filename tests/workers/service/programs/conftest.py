"""A service that other programs ask."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from fastapi import FastAPI

from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.workers.service.app import create_app


@pytest.fixture(scope="session")
def key() -> str:
    """Return the key that the service takes."""
    return "k" * 16


@pytest.fixture(scope="module")
def url(
    searcher: Searcher, bucket: Path, version: Path, key: str,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
) -> Iterator[str]:  # fmt: skip
    """Serve four sounds to whoever has the key."""
    settings = Settings.model_validate(
        {"bucket": str(bucket), "encoder": version, "api_keys": f"ann:{key}"}
    )
    with serving(create_app(searcher, settings)) as url:
        yield url
