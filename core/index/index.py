"""The index: generations of points in Qdrant and the alias that names the live one.

Every encoder version has a collection of its own, ``<alias>-<version>``, whose metadata names the
version. One code path serves a Qdrant server, the embedded Qdrant and the in-memory one.
"""

import ssl
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, Literal, Protocol

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from audiofuse.core.errors import ConfigurationError, Unavailable
from audiofuse.core.query import EVERYTHING, Filter
from audiofuse.core.settings import Settings

ITEM, AUDIO = "item", "audio"  # the named vectors: what queries search, and what re-fusing needs
VERSION_KEY = "encoder"  # in the collection's metadata and in every payload
TIMEOUT_S = 30
SCROLL_PAGE = 1000
NOT_FOUND = 404
KEYWORD = models.PayloadSchemaType.KEYWORD
PAYLOAD_INDEXES: Mapping[str, models.PayloadSchemaType | models.KeywordIndexParams] = {
    "bucket": KEYWORD,
    "key": models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, prefix=True),
    "keywords": KEYWORD,
    "labels": KEYWORD,
    "has_text": KEYWORD,
    "content_hash": KEYWORD,
    "duration_s": models.PayloadSchemaType.FLOAT,
    "modified": models.PayloadSchemaType.INTEGER,
    "indexed_at": models.PayloadSchemaType.INTEGER,
}


@dataclass(frozen=True)
class Generation:
    """The points of one encoder version."""

    collection: str
    version: str


@dataclass(frozen=True)
class Health:
    """How a generation stands: its points, those of them with an index, and whether that is all."""

    points: int
    indexed: int
    status: str
    optimised: bool


class GenerationGone(Unavailable):
    """The generation was dropped, or is not made yet: look again which there are."""


@dataclass(frozen=True)
class Point:
    """One item as the index holds it. Vectors are present where they were asked for."""

    id: str
    payload: Mapping[str, Any]
    item: Sequence[float] = ()
    audio: Sequence[float] = ()
    score: float = 0.0


@dataclass(frozen=True)
class Nearest:
    """Which points to find: the ``limit`` nearest to a vector by their item vectors.

    ``offset`` of them are passed over; ``items``: their item vectors come, too.
    """

    vector: Sequence[float]
    limit: int
    offset: int = 0
    where: Filter = EVERYTHING
    items: bool = False


@dataclass(frozen=True)
class Layout:
    """How a server is to keep a new collection; what is ``None`` it decides by itself.

    ``vectors`` are the item vectors: float16 are half as large; of int8 there are quantised ones in
    memory, and the originals, by which hits are ranked in the end, on disk.
    """

    shards: int | None = None
    replicas: int | None = None
    vectors: Literal["float32", "float16", "int8"] = "float32"

    def item_options(self) -> dict[str, Any]:
        """Return what the parameters of item vectors are besides size and distance."""
        if self.vectors == "float16":
            return {"datatype": models.Datatype.FLOAT16}
        if self.vectors == "int8":
            # Of the whole range: cut at the usual quantile, one of seven first hits is lost.
            int8 = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
            return {
                "on_disk": True,
                "quantization_config": models.ScalarQuantization(scalar=int8),
            }
        return {}


class VectorSizes(Protocol):
    """What a collection must know of an encoder; an ``Encoder`` will do."""

    @property
    def dim(self) -> int:
        """Width of item vectors."""

    @property
    def audio_dim(self) -> int:
        """Width of audio vectors."""


def open_index(settings: Settings) -> "Index":
    """Open the index on the Qdrant server that the settings name."""
    key = settings.qdrant_api_key
    secret = key.get_secret_value() if key else None
    client = connect(settings.qdrant_url, secret, settings.ca_file)
    layout = Layout(settings.qdrant_shards, settings.qdrant_replicas, settings.qdrant_vectors)
    return Index(client, settings.index_name, layout)


def connect(url: str, api_key: str | None = None, ca_file: Path | None = None) -> QdrantClient:
    """Connect to a Qdrant server; nothing is sent yet."""
    tls: dict[str, Any] = {"verify": ssl.create_default_context(cafile=ca_file)} if ca_file else {}
    with warnings.catch_warnings():
        # A key over plain http is right on the loopback, where the local deployment lives.
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        return QdrantClient(
            url=url, api_key=api_key, timeout=TIMEOUT_S, check_compatibility=False, **tls
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


class Index:
    """All generations under one alias. Every method raises ``Unavailable`` if Qdrant is away."""

    def __init__(self, client: QdrantClient, alias: str, layout: Layout = AS_IT_LIKES) -> None:
        """Use the generations whose live one is named by ``alias``; make new ones by ``layout``."""
        self._client = client
        self._alias = alias
        self._layout = layout

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn Qdrant being away into ``Unavailable``; its refusals stay what they are."""
        where = self._client.init_options.get("url") or "here"
        try:
            yield
        except ResponseHandlingException as error:
            raise Unavailable(f"Qdrant does not answer at {where}: {error.source}") from error
        except UnexpectedResponse as error:
            if error.status_code in {429, 500, 502, 503, 504}:
                raise Unavailable(f"Qdrant at {where} cannot answer now: {error}") from error
            raise

    @contextmanager
    def _in(self, generation: Generation) -> Iterator[None]:
        """Besides, turn the collection being gone into ``GenerationGone``."""
        try:
            with self._reporting():
                yield
        except (UnexpectedResponse, ValueError) as error:  # of a server; of the embedded engine
            absent = getattr(error, "status_code", NOT_FOUND) == NOT_FOUND
            if absent and generation.collection in str(error):
                raise GenerationGone(f"there is no collection {generation.collection}") from error
            raise

    def generation(self, version: str) -> Generation:
        """Return the generation of an encoder version, whether it exists yet or not."""
        return Generation(f"{self._alias}-{version}", version)

    def create(self, version: str, sizes: VectorSizes) -> Generation:
        """Make sure that the generation of a version exists; the first one goes live at once."""
        generation = self.generation(version)
        with self._reporting():
            if not self._client.collection_exists(generation.collection):
                self._create_collection(generation, sizes)
            if self.live() is None:
                self.promote(generation)
        return generation

    def _create_collection(self, generation: Generation, sizes: VectorSizes) -> None:
        cosine = models.Distance.COSINE
        try:
            self._client.create_collection(
                generation.collection,
                vectors_config={
                    ITEM: models.VectorParams(
                        size=sizes.dim, distance=cosine, **self._layout.item_options()
                    ),
                    # Stored as it is: its length carries how sure the tower was.
                    AUDIO: models.VectorParams(
                        size=sizes.audio_dim, distance=models.Distance.DOT, on_disk=True
                    ),
                },
                shard_number=self._layout.shards,
                replication_factor=self._layout.replicas,
                metadata={VERSION_KEY: generation.version},
            )
        except UnexpectedResponse as error:
            if error.status_code != 409:  # noqa: PLR2004 - HTTP conflict: another worker was first
                raise
        for field, schema in PAYLOAD_INDEXES.items():
            self._client.create_payload_index(
                generation.collection, field_name=field, field_schema=schema
            )

    def promote(self, generation: Generation) -> None:
        """Let the alias name this generation: in one step, so that it always names one."""
        create = models.CreateAlias(collection_name=generation.collection, alias_name=self._alias)
        delete = models.DeleteAlias(alias_name=self._alias)
        with self._in(generation):
            self._client.update_collection_aliases(
                [
                    models.DeleteAliasOperation(delete_alias=delete),
                    models.CreateAliasOperation(create_alias=create),
                ]
            )

    def drop(self, generation: Generation) -> None:
        """Delete a generation with all its points; one that is not there is no error."""
        with self._reporting():
            if self._client.collection_exists(generation.collection):
                self._client.delete_collection(generation.collection, timeout=TIMEOUT_S)

    def generations(self) -> list[Generation]:
        """Return the generations that exist under this alias."""
        with self._reporting():
            names = [each.name for each in self._client.get_collections().collections]
        mine = [name for name in names if name.startswith(f"{self._alias}-")]
        found = [self.generation(str(self._metadata(name).get(VERSION_KEY))) for name in mine]
        return [each for each, name in zip(found, mine, strict=True) if each.collection == name]

    def _metadata(self, collection: str) -> Mapping[str, Any]:
        with self._in(Generation(collection, "")):
            return self._client.get_collection(collection).config.metadata or {}

    def health(self, generation: Generation) -> Health:
        """Return how a generation stands."""
        with self._in(generation):
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
        with self._reporting():
            aliases = self._client.get_aliases().aliases
        names = [a.collection_name for a in aliases if a.alias_name == self._alias]
        if not names:
            return None
        metadata = self._metadata(names[0])
        if VERSION_KEY not in metadata:
            raise ConfigurationError(
                f"the alias {self._alias} names {names[0]}, which no audiofuse made; "
                "set AUDIOFUSE_INDEX_NAME to another name"
            )
        return Generation(names[0], metadata[VERSION_KEY])

    def upsert(self, generation: Generation, points: Iterable[Point]) -> None:
        """Write whole points; when this returns they are searchable."""
        structs = [
            models.PointStruct(
                id=point.id,
                vector={ITEM: list(point.item), AUDIO: list(point.audio)},
                payload=dict(point.payload),
            )
            for point in points
        ]
        with self._in(generation):
            self._client.upsert(generation.collection, structs, wait=True)

    def remove(self, generation: Generation, ids: Sequence[str]) -> None:
        """Delete points; ids without a point are no error."""
        with self._in(generation):
            self._client.delete(generation.collection, models.PointIdsList(points=list(ids)))

    def get(
        self, generation: Generation, ids: Sequence[str], *, vectors: bool = False
    ) -> dict[str, Point]:
        """Return the points that exist among ``ids``, by id."""
        with self._in(generation):
            records = self._client.retrieve(generation.collection, list(ids), with_vectors=vectors)
        return {str(record.id): _point(record) for record in records}

    def search(self, generation: Generation, asked: Sequence[Nearest]) -> list[list[Point]]:
        """Return, for each that is asked, the points nearest to it, with their audio vectors."""
        requests = [
            models.QueryRequest(
                query=list(each.vector), using=ITEM, limit=each.limit, offset=each.offset,
                filter=_conditions(each.where), with_payload=True,
                with_vector=[ITEM, AUDIO] if each.items else [AUDIO],
            )
            for each in asked
        ]  # fmt: skip
        with self._in(generation):
            answers = self._client.query_batch_points(generation.collection, requests)
        return [[_point(hit) for hit in answer.points] for answer in answers]

    def count(self, generation: Generation, where: Filter = EVERYTHING) -> int:
        """Return the exact number of points."""
        with self._in(generation):
            return self._client.count(
                generation.collection, count_filter=_conditions(where), exact=True
            ).count

    def scroll(self, generation: Generation, fields: Sequence[str]) -> Iterator[Point]:
        """Walk all points, page by page, with the named payload fields and no vectors."""
        offset: Any = None
        while True:
            with self._in(generation):
                records, offset = self._client.scroll(
                    generation.collection, limit=SCROLL_PAGE, offset=offset,
                    with_payload=list(fields), with_vectors=False,
                )  # fmt: skip
            yield from map(_point, records)
            if offset is None:
                return


def _conditions(where: Filter) -> models.Filter | None:
    """Return a filter as Qdrant knows it; ``None`` if it lets everything through."""
    texts = {
        "bucket": [where.bucket] if where.bucket else [],
        "keywords": where.keywords,
        "labels": where.labels,
        "has_text": [] if where.has_text is None else ["yes" if where.has_text else "no"],
    }
    must: list[models.Condition] = [
        models.FieldCondition(key=name, match=models.MatchValue(value=value))
        for name, values in texts.items()
        for value in values
    ]
    if where.prefix:
        starts = models.MatchPrefix(prefix=where.prefix)
        must.append(models.FieldCondition(key="key", match=starts))
    ranges = {
        "duration_s": models.Range(gte=where.min_duration_s, lte=where.max_duration_s),
        "modified": models.Range(gte=_ms(where.since), lt=_ms(where.until)),
    }
    must += [
        models.FieldCondition(key=name, range=bounds)
        for name, bounds in ranges.items()
        if bounds != models.Range()
    ]
    besides: list[models.Condition] = [models.HasIdCondition(has_id=list(where.besides))]
    must_not = besides if where.besides else []
    return models.Filter(must=must, must_not=must_not) if must or must_not else None


def _ms(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp() * 1000


def _point(record: models.Record | models.ScoredPoint) -> Point:
    vectors: dict[str, Any] = record.vector if isinstance(record.vector, dict) else {}
    return Point(
        id=str(record.id),
        payload=record.payload or {},
        item=vectors.get(ITEM, ()),
        audio=vectors.get(AUDIO, ()),
        score=getattr(record, "score", 0.0),
    )
