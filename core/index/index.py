"""The index: generations of points in Qdrant and the alias that names the live one.

Every encoder version has a collection of items of its own, ``<alias>-<version>``, whose metadata
names the version, and one of their moments, ``<alias>-<version>-moments``. One code path serves a
Qdrant server, the embedded Qdrant and the in-memory one.
"""

import ssl
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import httpx
from qdrant_client import QdrantClient, models

from audiofuse.core.errors import ConfigurationError, Unavailable
from audiofuse.core.index.browsing import BrowsedPoints, Order, Page
from audiofuse.core.index.collection import (
    AUDIO,
    HIT_FIELDS,
    ITEM,
    SCROLL_PAGE,
    VERSION_KEY,
    Generation,
    Nearest,
    Point,
)
from audiofuse.core.index.conditions import FILTERED
from audiofuse.core.index.moments import MOMENT_FIELDS, MomentPoints
from audiofuse.core.index.provisioning import (
    WINDOWS_KEY,
    Layout,
    VectorSizes,
    claimed,
    move_aliases,
    named_by,
    provision,
)
from audiofuse.core.index.refusals import GenerationGone, refusals
from audiofuse.core.model.config import Grid
from audiofuse.core.settings import Settings

__all__ = [  # whoever uses the index needs this module alone
    "AUDIO",
    "FILTERED",
    "HIT_FIELDS",
    "ITEM",
    "MOMENT_FIELDS",
    "SCROLL_PAGE",
    "VERSION_KEY",
    "Generation",
    "GenerationGone",
    "Health",
    "Index",
    "Layout",
    "Nearest",
    "Order",
    "Page",
    "Point",
    "VectorSizes",
    "connect",
    "connect_embedded",
    "open_index",
]

# Whoever lets the first generation go live is taken for dead after so long. Higher: a start that
# was killed just there holds the next one up longer; lower: one that is only slow loses its turn.
BEGINNING_S = 60.0
LOOK_S = 0.1  # between two looks whether it is live: less asks more often, more starts later
KEPT_ALIVE = httpx.Limits(max_connections=100, max_keepalive_connections=20)
TIMEOUT_S = 30  # for one answer: longer waits out slower servers, shorter tells sooner of dead ones


@dataclass(frozen=True)
class Health:
    """How a generation stands: its points, those of them with an index, and whether that is all."""

    points: int
    indexed: int
    status: str
    optimised: bool


def open_index(settings: Settings) -> "Index":
    """Open the index on the Qdrant server that the settings name."""
    key = settings.qdrant_api_key
    secret = key.get_secret_value() if key else None
    client = connect(settings.qdrant_url, secret, settings.ca_file)
    layout = Layout(
        settings.qdrant_shards, settings.qdrant_replicas, settings.qdrant_vectors,
        settings.qdrant_oversampling,
    )  # fmt: skip
    return Index(client, settings.index_name, layout)


def connect(url: str, api_key: str | None = None, ca_file: Path | None = None) -> QdrantClient:
    """Connect to a Qdrant server; nothing is sent yet."""
    tls: dict[str, Any] = {"verify": ssl.create_default_context(cafile=ca_file)} if ca_file else {}
    with warnings.catch_warnings():
        # A key over plain http is right on the loopback, where the local deployment lives.
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        return QdrantClient(
            url=url,
            api_key=api_key,
            timeout=TIMEOUT_S,
            check_compatibility=False,
            limits=KEPT_ALIVE,
            **tls,
        )


def connect_embedded() -> QdrantClient:
    """Open a Qdrant in this process' memory, for trials and tests.

    It is not thread-safe, so every call goes through one lock.
    """
    client = QdrantClient(":memory:")
    client._client = _Locked(client._client)  # type: ignore[assignment]  # noqa: SLF001 - the one seam every call passes
    return client


class _Locked:
    """Lets one thread at a time call any method of the embedded engine."""

    def __init__(self, engine: object) -> None:
        self._engine = engine
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._engine, name)
        return self._guard(attribute) if callable(attribute) else attribute

    def create_payload_index(self, *_: object, **__: object) -> models.UpdateResult:
        """Do nothing: the embedded engine has no payload indexes, and warns when asked for one."""
        return models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)

    def _guard(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def guarded(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                return method(*arguments, **options)

        return guarded


AS_IT_LIKES = Layout()


class Index(BrowsedPoints, MomentPoints):
    """All generations under one alias. Every method raises ``Unavailable`` if Qdrant is away."""

    def __init__(self, client: QdrantClient, alias: str, layout: Layout = AS_IT_LIKES) -> None:
        """Use the generations whose live one is named by ``alias``; make and ask by ``layout``."""
        super().__init__(client, layout.search_params())
        self._alias = alias
        self._layout = layout

    def generation(self, version: str) -> Generation:
        """Return the generation of an encoder version, whether it exists yet or not."""
        return Generation(f"{self._alias}-{version}", version)

    def create(self, version: str, sizes: VectorSizes, grid: Grid | None = None) -> Generation:
        """Make sure that the generation of a version exists, and is as it would be made today.

        It notes by which ``grid`` recordings are cut into moments, if they are.

        The first one goes live at once. Any number of processes may do this at the same time, also
        for several versions: ``live`` tells whose was first.
        """
        generation = self.generation(version)
        with self._refusals(generation):
            provision(self._client, generation, sizes, self._layout, grid)
        if self.live() is None:
            self._begin(generation)
        return generation

    def _begin(self, generation: Generation) -> None:
        """Let a generation go live if none has meanwhile; ``Unavailable`` if that is open for long.

        An alias is moved whether it names something or not, so that only one may look and move it.
        """
        name, deadline = f"{self._alias}.begins", time.monotonic() + BEGINNING_S
        while True:
            with refusals(self._client), claimed(self._client, name) as is_ours:
                if self.live() is not None:
                    return
                if is_ours:
                    self.promote(generation)
                    return
            if time.monotonic() > deadline:
                break
            time.sleep(LOOK_S)
        with refusals(self._client):
            self._client.delete_collection(name)  # whoever made it was killed: the next may begin
        raise Unavailable(f"the first generation of {self._alias} is about to go live")

    def grid(self, generation: Generation) -> Grid | None:
        """Return by which windows the moments of a generation are cut; ``None`` if it has none."""
        try:
            windows = self._metadata(generation.moments.collection).get(WINDOWS_KEY)
        except GenerationGone:  # an older release made it
            return None
        return Grid(*windows) if windows else None

    def promote(self, generation: Generation) -> None:
        """Let the aliases name this generation; refused, they name what they named before.

        Raises ``GenerationGone`` if there is no such generation.
        """
        with self._refusals(generation):
            move_aliases(self._client, self._alias, generation)

    def drop(self, generation: Generation) -> None:
        """Delete a generation with all its points; one that is not there is no error."""
        with refusals(self._client):
            for each in (generation.moments, generation):  # a kill between leaves what is listed
                if self._client.collection_exists(each.collection):
                    self._client.delete_collection(each.collection, timeout=TIMEOUT_S)

    def generations(self) -> list[Generation]:
        """Return the generations that exist under this alias."""
        with refusals(self._client):
            names = [each.name for each in self._client.get_collections().collections]
        mine = [name for name in names if name.startswith(f"{self._alias}-")]
        found = [self.generation(str(self._metadata(name).get(VERSION_KEY))) for name in mine]
        return [each for each, name in zip(found, mine, strict=True) if each.collection == name]

    def _metadata(self, collection: str) -> Mapping[str, Any]:
        with refusals(self._client, collection):
            return self._client.get_collection(collection).config.metadata or {}

    def health(self, generation: Generation) -> Health:
        """Return how a generation stands."""
        with self._refusals(generation):
            info = self._client.get_collection(generation.collection)
        return Health(
            points=info.points_count or 0,
            indexed=info.indexed_vectors_count or 0,
            status=str(info.status.value),
            optimised=info.status is models.CollectionStatus.GREEN
            and info.optimizer_status == models.OptimizersStatusOneOf.OK,
        )

    def live(self) -> Generation | None:
        """Resolve the alias to the live generation; ``None`` before anything was indexed."""
        with refusals(self._client):
            collection = named_by(self._client, self._alias)
        if collection is None:
            return None
        metadata = self._metadata(collection)
        if VERSION_KEY not in metadata:
            raise ConfigurationError(
                f"the alias {self._alias} names {collection}, which no audiofuse made; "
                "set AUDIOFUSE_INDEX_NAME to another name"
            )
        return Generation(collection, metadata[VERSION_KEY])
