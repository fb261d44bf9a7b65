"""A bucket of examples with its service, and what tests of the search page do again and again."""

import shutil
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from local_encoder import LocalEncoder
from playwright.sync_api import Locator, Page
from pydantic import SecretStr

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.index.index import Index, connect_embedded
from audiofuse.core.search.loaded import LoadedEncoders
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing.decoding.pool import Decoders
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.queue.broker import connect_redis, open_lanes
from audiofuse.workers.repair.explain import Explainer
from audiofuse.workers.service.app import create_app

SOUNDS = Path(__file__).parents[2] / "examples" / "sounds"
VERSION = "tiny-000000"


class Bucket:
    """A bucket folder and the service that searches it."""

    def __init__(self, root: Path, encoder: Encoder) -> None:
        """Index every sound of the bucket."""
        self.root = root
        self.index = Index(connect_embedded(), "audiofuse")
        self._generation = self.index.create(VERSION, encoder)
        limits = Limits(120, 10**7)
        self._syncer = Syncer(
            BucketSide(FolderStore(root), limits),
            IndexSide(self.index, self._generation, grid=encoder.config.grid),
            LocalEncoder(encoder),
        )
        self.decoders = Decoders(1, 30)
        self._searcher = Searcher(
            self.index, LoadedEncoders(_nowhere, {VERSION: encoder}), open_sound=self.decoders.open
        )

    def add(self, key: str, name: str = "") -> None:
        """Put an example into the bucket, under another ``name`` if one is given, and index it."""
        path = self.root / (name or key)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOUNDS / key, path)
        self.sync(name or key)

    def sync(self, key: str) -> None:
        """Index what the bucket has under a key."""
        self._syncer.sync(key)

    def remove(self, key: str) -> None:
        """Take a sound out of the bucket and the index."""
        (self.root / key).unlink()
        self.sync(key)

    def app(self, api_keys: SecretStr | None = None, **settings: Any) -> FastAPI:
        """Return the service."""
        current = Settings(bucket=str(self.root), api_keys=api_keys, **settings)
        explainer = Explainer(
            FolderStore(self.root), self.index, connect_redis(current), open_lanes(current),
            current.index_name,
        )  # fmt: skip
        return create_app(self._searcher, current, explainer=explainer)


def _nowhere(version: str) -> Encoder:
    raise AssertionError(f"nobody asked for {version}")


def ask(page: Page, text: str) -> None:
    """Ask by words."""
    page.get_by_role("searchbox").fill(text)
    page.keyboard.press("Enter")


def hits(page: Page) -> Locator:
    """Return the hits that are shown."""
    return page.locator("#results:not([aria-busy]) .hit")


def titles(page: Page) -> list[str]:
    """Return the titles of the hits that are shown."""
    return page.locator("#results:not([aria-busy]) .hit h2").all_inner_texts()


def hit(page: Page, title: str) -> Locator:
    """Return the hit with a title."""
    return hits(page).filter(has=page.get_by_role("heading", name=title, exact=True))
