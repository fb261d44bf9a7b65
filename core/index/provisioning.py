"""How a collection is made, and made whole again where it is not as it would be made today.

Several workers may do this at once, and each may be killed at any moment: every step asks for what
is to be, is no error where it is so already, and is taken again at the next start.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any, Literal, Protocol

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from audiofuse.core.index.collection import AUDIO, ITEM, VERSION_KEY, Generation
from audiofuse.core.index.conditions import FILTERED
from audiofuse.core.model.config import Grid

KEYWORD = models.PayloadSchemaType.KEYWORD
PayloadIndexes = Mapping[str, models.PayloadSchemaType | models.KeywordIndexParams]
PAYLOAD_INDEXES: PayloadIndexes = {
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
MOMENT_INDEXES: PayloadIndexes = {
    "item": KEYWORD,
    "number": models.PayloadSchemaType.INTEGER,
    "state": KEYWORD,
    **{field: PAYLOAD_INDEXES[field] for field in FILTERED},
}
# Audio vectors are fetched with their points and never searched: a graph of them would cost a third
# of the server's work for nothing.
NO_GRAPH = models.HnswConfigDiff(m=0)


# In the metadata of a collection of moments: window and hop in seconds, or nothing, for none.
WINDOWS_KEY = "windows"
TAKEN = "already exists"  # in the text of every Qdrant's refusal to make a collection again


class VectorSizes(Protocol):
    """What a collection must know of an encoder; an ``Encoder`` will do."""

    @property
    def dim(self) -> int:
        """Width of item vectors."""

    @property
    def audio_dim(self) -> int:
        """Width of audio vectors."""


@dataclass(frozen=True)
class Layout:
    """How a server is to keep a collection; what is ``None`` it decides by itself.

    ``vectors`` are the item vectors: float16 are half as large; of int8 there are quantised ones in
    memory, and the originals, by which hits are ranked in the end, on disk. ``oversampling`` times
    as many as are asked for are found by the quantised ones and ranked by the originals.
    """

    shards: int | None = None
    replicas: int | None = None
    vectors: Literal["float32", "float16", "int8"] = "float32"
    oversampling: float | None = None

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

    def search_params(self) -> models.SearchParams | None:
        """Return how hits are to be looked up; ``None``: as the server does by itself."""
        if self.oversampling is None:
            return None
        again = models.QuantizationSearchParams(rescore=True, oversampling=self.oversampling)
        return models.SearchParams(quantization=again)


def provision(
    client: QdrantClient,
    generation: Generation,
    sizes: VectorSizes,
    layout: Layout,
    grid: Grid | None,
) -> None:
    """Make sure that a generation has its two collections, with all that belongs to them.

    Raises what the client raises.
    """
    # Moments first: where a release that knows them made the items' collection, theirs is there.
    for each, indexes in ((generation.moments, MOMENT_INDEXES), (generation, PAYLOAD_INDEXES)):
        if not client.collection_exists(each.collection):
            _make(client, each, sizes, layout)
        _heal(client, each.collection, indexes)
    _note_grid(client, generation.moments.collection, grid)


def _note_grid(client: QdrantClient, collection: str, grid: Grid | None) -> None:
    """Have the collection of moments say by which windows recordings are cut, for who compares."""
    wanted = list(astuple(grid)) if grid else []
    if (client.get_collection(collection).config.metadata or {}).get(WINDOWS_KEY) != wanted:
        client.update_collection(collection, metadata={WINDOWS_KEY: wanted})


def _make(client: QdrantClient, generation: Generation, sizes: VectorSizes, layout: Layout) -> None:
    try:
        client.create_collection(
            generation.collection,
            vectors_config={
                ITEM: models.VectorParams(
                    size=sizes.dim, distance=models.Distance.COSINE, **layout.item_options()
                ),
                # Stored as it is: its length carries how sure the tower was.
                AUDIO: models.VectorParams(
                    size=sizes.audio_dim,
                    distance=models.Distance.DOT,
                    on_disk=True,
                    hnsw_config=NO_GRAPH,
                ),
            },
            shard_number=layout.shards,
            replication_factor=layout.replicas,
            write_consistency_factor=layout.replicas and _most(layout.replicas),
            metadata={VERSION_KEY: generation.version},
        )
    except (UnexpectedResponse, ValueError):  # of a server; of the engine in memory
        if not client.collection_exists(generation.collection):
            raise  # else somebody made it meanwhile


def _heal(client: QdrantClient, collection: str, indexes: PayloadIndexes) -> None:
    """Add what a start that was cut off, or an older release, left out.

    The embedded engine has no graphs and no replicas, and so tells nothing of them.
    """
    info = client.get_collection(collection)
    for field, schema in indexes.items():
        if not _is_indexed(info.payload_schema.get(field), schema):
            client.create_payload_index(collection, field_name=field, field_schema=schema)
    if _has_graph(info.config.params.vectors):
        without = {AUDIO: models.VectorParamsDiff(hnsw_config=NO_GRAPH)}
        client.update_collection(collection, vectors_config=without)
    params = info.config.params
    written = _most(params.replication_factor or 1)
    if (params.write_consistency_factor or 1) < written:
        more = models.CollectionParamsDiff(write_consistency_factor=written)
        client.update_collection(collection, collection_params=more)


def _most(replicas: int) -> int:
    """Return how many of so many replicas must have a write before it counts."""
    return replicas // 2 + 1


def _is_indexed(
    found: models.PayloadIndexInfo | None,
    wanted: models.PayloadSchemaType | models.KeywordIndexParams,
) -> bool:
    if found is None:
        return False
    if isinstance(wanted, models.PayloadSchemaType):
        return found.data_type is wanted
    has_prefix = bool(getattr(found.params, "prefix", False))
    return found.data_type is KEYWORD and has_prefix == bool(wanted.prefix)


def _has_graph(vectors: Any) -> bool:
    """Whether audio vectors get a graph."""
    audio = vectors.get(AUDIO) if isinstance(vectors, dict) else None
    return audio is not None and (audio.hnsw_config is None or audio.hnsw_config.m != 0)


@contextmanager
def claimed(client: QdrantClient, name: str) -> Iterator[bool]:
    """Have a lock while this lasts, or false if somebody else has it.

    It is an empty collection called ``name``: of all that ask for one a server makes the first.
    """
    vector = models.VectorParams(size=1, distance=models.Distance.DOT)
    try:
        client.create_collection(name, vectors_config=vector)
    except (UnexpectedResponse, ValueError) as error:  # as above
        if TAKEN not in str(error):
            raise
        yield False
        return
    try:
        yield True
    finally:
        client.delete_collection(name)


def move_aliases(client: QdrantClient, alias: str, generation: Generation) -> None:
    """Let the alias name this generation, and ``<alias>-moments`` its moments; refused, neither.

    The second is for programs without audiofuse. It names nothing where an older release made a
    generation, which has no moments.
    """
    wanted = _naming(alias, generation.collection)
    try:
        client.update_collection_aliases([*_naming_moments(client, alias, generation), wanted])
    except (UnexpectedResponse, ValueError):  # as above
        # Of several actions a server keeps those that came before the one that it refuses.
        live = Generation(named_by(client, alias) or "", "")
        client.update_collection_aliases(_naming_moments(client, alias, live))
        raise


def named_by(client: QdrantClient, alias: str) -> str | None:
    """Return the collection that an alias names."""
    aliases = client.get_aliases().aliases
    return next((each.collection_name for each in aliases if each.alias_name == alias), None)


def _naming_moments(
    client: QdrantClient, alias: str, generation: Generation
) -> list[models.AliasOperations]:
    """Return what lets the alias of moments name those of a generation, or nothing without any."""
    name, collection = f"{alias}-moments", generation.moments.collection
    if client.collection_exists(collection):
        return [_naming(name, collection)]
    if named_by(client, name):
        delete = models.DeleteAlias(alias_name=name)
        return [models.DeleteAliasOperation(delete_alias=delete)]
    return []


def _naming(alias: str, collection: str) -> models.CreateAliasOperation:
    wanted = models.CreateAlias(collection_name=collection, alias_name=alias)
    return models.CreateAliasOperation(create_alias=wanted)
