"""Clips: sounds with the words that belong to them, what training and evaluation work on."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from audiofuse.core.errors import ConfigurationError, Reason, Rejected
from audiofuse.core.items import Metadata

CAPTION = "caption"  # the kind of a query that is a caption
TRAIN, VAL, TEST = "train", "val", "test"  # splits: what is learned from, chosen by, tested by


@dataclass(frozen=True)
class Query:
    """A sentence and the identity of the sounds that it means; ``others``: further such ones."""

    text: str
    kind: str
    identity: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clip:
    """A sound file and what is known of it. Clips of one ``identity`` are the same sound.

    ``origin`` names the recording that a clip was cut from, where that is known: clips of one
    origin are different sounds, but too alike to learn from one and be tested by the other.
    ``captions`` are human sentences: training targets, never part of ``metadata``; ``artificial``
    are what a machine wrote instead, such as WavCaps' captions. ``collection``
    is the data set or part of one that the clip comes from. An empty ``split`` is not decided yet.
    """

    path: Path
    identity: str
    split: str
    metadata: Metadata
    queries: tuple[Query, ...] = ()
    captions: tuple[str, ...] = ()
    licence: str = ""
    collection: str = ""
    origin: str = ""
    artificial: tuple[str, ...] = ()


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _without_blanks(sentences: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sentence.strip() for sentence in sentences if sentence.strip())


_Sentences = Annotated[
    tuple[str, ...], BeforeValidator(_one_or_many), AfterValidator(_without_blanks)
]


class _Query(BaseModel):
    text: str
    kind: str = ""


class _Fields(BaseModel):
    """What a sidecar or a manifest's row may say of a clip beside its metadata."""

    identity: str = ""
    split: str = ""
    captions: _Sentences = ()
    artificial_captions: _Sentences = ()
    queries: tuple[_Query, ...] = ()
    licence: str = ""
    collection: str = Field(default="", alias="set")


def clip_of(path: Path, identity: str, metadata: Metadata) -> Clip:
    """Make a clip of a sound and its sidecar, whose other fields say what the clip is for.

    Those are ``identity`` (else the one given), ``split``, ``captions`` and ``artificial_captions``
    (one or a list), ``queries``, ``licence`` and ``set``; ``Rejected(BAD_SIDECAR)`` names one that
    is wrong.
    """
    try:
        fields = _Fields.model_validate(metadata.extra)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Rejected(Reason.BAD_SIDECAR, f'field "{where}": {first["msg"]}') from None
    identity = fields.identity or identity
    return Clip(
        path=path,
        identity=identity,
        split=fields.split,
        metadata=replace(metadata, extra={}),
        queries=tuple(Query(query.text, query.kind, identity) for query in fields.queries),
        captions=fields.captions,
        licence=fields.licence,
        collection=fields.collection,
        artificial=fields.artificial_captions,
    )


def read_manifest(path: Path) -> list[Clip]:
    """Read a JSONL manifest; a broken line raises ``ConfigurationError`` with its number.

    A row is a sidecar with the field ``audio``, a path beside the manifest.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigurationError(f"cannot read the manifest {path}: {error.strerror}") from error
    clips = []
    for number, line in enumerate(lines, 1):
        try:
            clips.append(parse_row(line, path.parent))
        except Rejected as error:
            raise ConfigurationError(f"{path}, line {number}: {error.detail}") from error
    return clips


def parse_row(line: bytes, folder: Path) -> Clip:
    """Make a clip of a manifest's row; ``Rejected(BAD_SIDECAR)`` says what is wrong with it."""
    row = Metadata.from_json(line)
    audio = row.extra.get("audio")
    if not isinstance(audio, str) or not audio:
        raise Rejected(Reason.BAD_SIDECAR, 'field "audio": a path is needed')
    return clip_of(folder / audio, audio, row)


def ask_for_captions(clip: Clip) -> Clip:
    """Make each caption a query of the clip, unless it has queries of its own."""
    captions = tuple(Query(caption, CAPTION, clip.identity) for caption in clip.captions)
    return replace(clip, queries=clip.queries or captions)


def select_queries(clips: Iterable[Clip], split: str, kind: str = "") -> list[Query]:
    """Return each query of a split once, though every clip of its identity may repeat it.

    Equal captions of one clip are as many queries: the benchmarks ask each of them.
    """
    chosen: dict[tuple[str, str, int], Query] = {}
    for clip in clips:
        if clip.split == split:
            asked = Counter[str]()
            for query in clip.queries:
                asked[query.text] += 1
                if kind in {"", query.kind}:
                    chosen[query.identity, query.text, asked[query.text]] = query
    return list(chosen.values())


def queries_of(clips: Sequence[Clip], split: str | None = None) -> list[Query]:
    """Return each query of a split once, or of all clips."""
    splits = dict.fromkeys(clip.split for clip in clips) if split is None else [split]
    return [query for name in splits for query in select_queries(clips, name)]
