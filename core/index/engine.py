"""Qdrant's own engine inside this process: each collection is a shard in a folder of its own.

It knows neither collections nor aliases, so those are folders and a file beside them::

    FOLDER/lock   FOLDER/aliases.json   FOLDER/<collection>/collection.json, shard/

Its ``optimize`` is never called: it would stop the whole process for as long as it takes. So search
compares with every point, in few bits, and some ten milliseconds long at a hundred thousand.
"""

import fcntl
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import qdrant_edge as edge
from qdrant_client import models

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.index.rest import Record
from audiofuse.core.index.translation import (
    SPARE,
    filter_of,
    grouped,
    order_of,
    page_of,
    query_of,
)

ALIASES, COLLECTION, SHARD = "aliases.json", "collection.json", "shard"
OWN_FAULT = "Service"  # how its errors begin that no question is to blame for
Selected = models.PointIdsList | models.FilterSelector
DONE = models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)
# Vectors are compared in two bits first, and the nearest of them again as they are: so many times
# as many as are asked for, and of all points at least so many. Less finds others than the nearest;
# see DECISIONS.md.
QUICK = edge.TurboQuantQuantizationConfig(bits=edge.TurboQuantBitSize.Bits2)
TIMES, AT_LEAST = 8.0, 1000
DISTANCES = {models.Distance.COSINE: edge.Distance.Cosine, models.Distance.DOT: edge.Distance.Dot}
SCHEMAS = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "float": edge.PayloadSchemaType.Float,
    "integer": edge.PayloadSchemaType.Integer,
}


class NoSuchCollectionError(ValueError):
    """There is no collection or alias of this name."""


class CollectionExistsError(ValueError):
    """There is a collection of this name already."""


class Engine:
    """What ``embedded.py`` serves, by the names of ``QdrantClient``. Threads may call at once.

    Every method raises ``ValueError`` for what cannot be asked; that is ``NoSuchCollectionError``
    where there is no such collection.
    """

    def __init__(self, folder: Path) -> None:
        """Open all collections of a folder; ``ConfigurationError`` if another process has it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigurationError(f"the index {folder} is open in another process") from error
        self._changing = threading.Lock()
        self._aliases: dict[str, str] = _read(folder / ALIASES)
        made = sorted(path.parent for path in folder.glob(f"*/{COLLECTION}"))
        self._metadata = {path.name: _read(path / COLLECTION) for path in made}
        self._shards = {path.name: edge.EdgeShard.load(str(path / SHARD)) for path in made}

    def close(self) -> None:
        """Write everything and let go of the folder."""
        for shard in self._shards.values():
            shard.close()
        self._lock.close()

    def get_aliases(self) -> models.CollectionsAliasesResponse:
        """Return all aliases."""
        aliases = [
            models.AliasDescription(alias_name=alias, collection_name=name)
            for alias, name in self._aliases.items()
        ]
        return models.CollectionsAliasesResponse(aliases=aliases)

    def update_collection_aliases(self, actions: Sequence[Any]) -> bool:
        """Change aliases, one action after the other, up to one that is refused.

        As a server does: what came before the refusal stays changed.
        """
        with self._changing:
            for action in actions:
                aliases = dict(self._aliases)
                if isinstance(action, models.DeleteAliasOperation):
                    aliases.pop(action.delete_alias.alias_name, None)
                else:
                    wanted = action.create_alias
                    aliases[wanted.alias_name] = self._name(wanted.collection_name)
                self._set_aliases(aliases)
        return True

    def _set_aliases(self, aliases: dict[str, str]) -> None:
        _replace(self._folder / ALIASES, aliases)
        self._aliases = aliases

    def get_collections(self) -> models.CollectionsResponse:
        """Return the names of all collections."""
        names = [models.CollectionDescription(name=name) for name in list(self._shards)]
        return models.CollectionsResponse(collections=names)

    def collection_exists(self, name: str) -> bool:
        """Whether there is a collection or an alias of that name."""
        return self._aliases.get(name, name) in self._shards

    def create_collection(self, name: str, vectors_config: Any, metadata: Any = None) -> bool:
        """Make a collection; what a crash left of one is begun anew.

        Raises ``CollectionExistsError`` if there is one, so that of several callers one makes it.
        """
        named = vectors_config if isinstance(vectors_config, dict) else {"": vectors_config}
        vectors = {
            vector: edge.EdgeVectorParams(
                size=each.size,
                distance=DISTANCES[each.distance],
                # Those that are only stored beside it are compared by dot product, if ever.
                quantization_config=QUICK if each.distance == models.Distance.COSINE else None,
            )
            for vector, each in named.items()
        }
        folder = self._folder / name
        with self._changing:
            if name in self._shards or name in self._aliases:
                raise CollectionExistsError(f"Collection {name} already exists")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            shard = edge.EdgeShard.create(str(folder / SHARD), edge.EdgeConfig(vectors=vectors))
            _replace(folder / COLLECTION, metadata or {})  # last: without it there is none
            self._metadata[name], self._shards[name] = metadata or {}, shard
        return True

    def delete_collection(self, name: str) -> bool:
        """Delete a collection, and the aliases that name it; false if there is none."""
        with self._changing:
            if name not in self._shards:
                return False
            self._set_aliases({a: c for a, c in self._aliases.items() if c != name})
            shard = self._shards.pop(name)
            (self._folder / name / COLLECTION).unlink()  # first: what is left is no collection
            shard.close()
            shutil.rmtree(self._folder / name)
        return True

    def get_collection(self, name: str) -> dict[str, Any]:
        """Return how a collection stands, in the form that ``CollectionInfo`` has."""
        with self._shard(name) as shard:
            info = shard.info()
        return {
            "status": "green",
            "optimizer_status": "ok",
            "points_count": info.points_count,
            "indexed_vectors_count": info.indexed_vectors_count,
            "segments_count": info.segments_count,
            "payload_schema": {
                field: _payload_index(each) for field, each in info.payload_schema.items()
            },
            "config": {
                "params": {},
                "metadata": self._metadata[self._name(name)],
                "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000},
                "optimizer_config": {"default_segment_number": 0, "flush_interval_sec": 5},
            },
        }

    def update_collection(self, name: str, metadata: Any) -> bool:
        """Add to the metadata of a collection."""
        with self._changing:
            collection = self._name(name)
            merged = self._metadata[collection] | (metadata or {})
            _replace(self._folder / collection / COLLECTION, merged)
            self._metadata[collection] = merged
        return True

    def create_payload_index(self, name: str, field: str, schema: Any) -> models.UpdateResult:
        """Index a payload field."""
        kind = SCHEMAS[getattr(schema, "type", schema).value]
        has_prefix = getattr(schema, "prefix", None)
        wanted = edge.KeywordIndexParams(prefix=True) if has_prefix else kind
        return self._update(name, edge.UpdateOperation.create_field_index(field, wanted))

    def upsert(
        self, name: str, points: Sequence[models.PointStruct | Record]
    ) -> models.UpdateResult:
        """Write whole points."""
        made = [edge.Point(str(p.id), cast("Any", p.vector), p.payload) for p in points]
        return self._update(name, edge.UpdateOperation.upsert_points(made))

    def delete(self, name: str, selector: Selected) -> models.UpdateResult:
        """Delete the points of some ids, or those that pass a filter."""
        if isinstance(selector, models.PointIdsList):
            return self._update(name, edge.UpdateOperation.delete_points(selector.points))
        wanted = filter_of(selector.filter) or edge.Filter()
        return self._update(name, edge.UpdateOperation.delete_points_by_filter(wanted))

    def set_payload(self, name: str, payload: Any, wanted: Any) -> models.UpdateResult:
        """Add to the payload of the points that pass a filter."""
        chosen = filter_of(wanted) or edge.Filter()
        return self._update(name, edge.UpdateOperation.set_payload_by_filter(chosen, payload))

    def _update(self, name: str, operation: edge.UpdateOperation) -> models.UpdateResult:
        with self._shard(name) as shard:
            shard.update(operation)
        return DONE

    def retrieve(
        self, name: str, ids: Any, with_payload: Any, with_vectors: Any
    ) -> list[dict[str, Any]]:
        """Return the points that exist among ``ids``."""
        with self._shard(name) as shard:
            return [_point(each) for each in shard.retrieve(ids, with_payload, with_vectors)]

    def count(self, name: str, count_filter: models.Filter | None = None) -> models.CountResult:
        """Count the points that pass a filter."""
        request = edge.CountRequest(exact=True, filter=filter_of(count_filter))
        with self._shard(name) as shard:
            return models.CountResult(count=shard.count(request))

    def scroll(  # noqa: PLR0913, PLR0917 - what a QdrantClient is asked
        self, name: str, scroll_filter: Any, limit: int, offset: Any, with_payload: Any,
        with_vectors: Any, order_by: Any = None,
    ) -> tuple[list[dict[str, Any]], str | None]:  # fmt: skip
        """Return a page of points, and where the next one begins; in an order nowhere."""
        request = edge.ScrollRequest(
            offset, limit, filter_of(scroll_filter), with_payload, with_vectors, order_of(order_by)
        )
        with self._shard(name) as shard:
            points, following = shard.scroll(request)
        return [_point(each) for each in points], str(following) if following else None

    def facet(self, name: str, asked: models.FacetRequest) -> models.FacetResponse:
        """Return the commonest values of a field, with how many points have each."""
        request = edge.FacetRequest(
            asked.key, asked.limit or 10, bool(asked.exact), filter_of(asked.filter)
        )
        with self._shard(name) as shard:
            hits = shard.facet(request).hits
        found = [models.FacetValueHit(value=each.value, count=each.count) for each in hits]
        return models.FacetResponse(hits=found)

    def query_batch_points(self, name: str, searches: Sequence[models.QueryRequest]) -> list[Any]:
        """Return the points nearest to each vector, or points by chance."""
        with self._shard(name) as shard:
            firsts = shard.query_batch(edge.QueryBatchRequest([_ids(each) for each in searches]))
            return [
                {"points": _page(shard, each, met)}
                for each, met in zip(searches, firsts, strict=True)
            ]

    def query_points_groups(self, name: str, asked: models.QueryGroupsRequest) -> dict[str, Any]:
        """Return the points nearest to a vector in groups, of each at most some."""
        if asked.with_lookup or asked.prefetch:
            raise ValueError("the embedded index groups without look-up and prefetch")
        query, passing = query_of(asked), filter_of(asked.filter)

        must: list[Any] = [passing] if passing else []

        def ask(besides: Sequence[Any], limit: int) -> Sequence[edge.ScoredPoint]:
            wanted = edge.Filter(must=must, must_not=list(besides)) if must or besides else None
            return shard.query(
                edge.QueryRequest(
                    limit=limit, filter=wanted, query=query, params=_again(limit, AT_LEAST),
                    with_payload=[asked.group_by],
                )
            )  # fmt: skip

        def ask_each(within: Sequence[Any], limit: int) -> Sequence[list[edge.ScoredPoint]]:
            wanted = [edge.Filter(must=[each, *must]) for each in within]
            requests = [
                edge.QueryRequest(limit=limit, filter=each, query=query, params=_again(limit))
                for each in wanted
            ]
            return shard.query_batch(edge.QueryBatchRequest(requests))

        with self._shard(name) as shard:
            found = grouped(ask, ask_each, asked.group_by, asked.limit or 10, asked.group_size or 3)
            groups = [
                {"id": group, "hits": _whole(shard, hits, asked.with_payload, asked.with_vector)}
                for group, hits in found.items()
            ]
        return {"groups": [group for group in groups if group["hits"]]}

    def _name(self, name: str) -> str:
        """Return the collection that a name or an alias means."""
        if (found := self._aliases.get(name, name)) not in self._shards:
            raise NoSuchCollectionError(f"Collection {name} not found")
        return found

    @contextmanager
    def _shard(self, name: str) -> Iterator[edge.EdgeShard]:
        """Lend a collection's shard; all that the engine says is a bare ``Exception``."""
        collection = self._name(name)
        try:
            yield self._shards[collection]
        except Exception as error:
            if collection not in self._shards:  # it was deleted meanwhile
                raise NoSuchCollectionError(f"Collection {name} not found") from error
            if type(error) is Exception and not str(error).startswith(OWN_FAULT):
                raise ValueError(str(error)) from error
            raise


def _ids(asked: models.QueryRequest, limit: int | None = None) -> edge.QueryRequest:
    """Return a question for the first hits alone: their ids and scores."""
    reach = limit or (asked.offset or 0) + (asked.limit or 10) + SPARE
    return edge.QueryRequest(
        limit=reach, filter=filter_of(asked.filter), query=query_of(asked),
        params=_again(reach, AT_LEAST),
    )  # fmt: skip


def _again(limit: int, at_least: int = 0) -> edge.SearchParams:
    """Return how many are compared again where ``limit`` are asked for."""
    times = max(TIMES, at_least / limit)
    return edge.SearchParams(
        quantization=edge.QuantizationSearchParams(rescore=True, oversampling=times)
    )


def _page(
    shard: edge.EdgeShard, asked: models.QueryRequest, met: Sequence[Any]
) -> list[dict[str, Any]]:
    """Return a page of hits, whole; by chance there is but one page."""
    offset, limit = asked.offset or 0, asked.limit or 10
    if isinstance(asked.query, models.SampleQuery):
        hits = list(met[:limit])
    else:
        hits = page_of(met, lambda more: shard.query(_ids(asked, more)), offset, limit)
    return _whole(shard, hits, asked.with_payload, asked.with_vector)


def _whole(
    shard: edge.EdgeShard, hits: Sequence[Any], with_payload: Any, with_vectors: Any
) -> list[dict[str, Any]]:
    """Return hits with what is asked for; what was deleted since it was found is left out."""
    found = shard.retrieve([hit.id for hit in hits], with_payload or False, with_vectors or False)
    points = {each.id: _point(each) for each in found}
    scored = ((points.get(hit.id), hit.score) for hit in hits)
    return [point | {"score": score, "version": 0} for point, score in scored if point]


def _payload_index(found: Any) -> dict[str, Any]:
    kinds = {kind: name for name, kind in SCHEMAS.items()}
    has_prefix = bool(getattr(found.params, "prefix", None))
    return {
        "data_type": kinds[found.data_type],
        "params": {"type": "keyword", "prefix": True} if has_prefix else None,
        "points": found.points,
    }


def _point(found: Any) -> dict[str, Any]:
    return {"id": str(found.id), "payload": found.payload, "vector": found.vector}


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return value


def _replace(path: Path, value: object) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.replace(path)
