"""Several buckets as one: an object's key begins with the name of its bucket and a slash.

``field/2026/rain.wav`` is ``2026/rain.wav`` of what the settings call ``field``. So whatever knows
objects by their keys, from the queue to the page, knows them apart, and a sidecar is in the same
bucket as its sound. What names an object for ever, and so its point, are both parts: a bucket that
was the only one keeps its points if it keeps its name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
)

from audiofuse.core.errors import ConfigurationError, Reason, Rejected, Unavailable
from audiofuse.core.items import ObjectInfo
from audiofuse.core.query import Filter, Place

if TYPE_CHECKING:
    from audiofuse.core.settings import Settings
    from audiofuse.core.storage.store import Store

SETTING = "AUDIOFUSE_BUCKETS"
S3_SCHEME = "s3://"
BUCKET_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"


class Mount(BaseModel):
    """One of several buckets, as the setting describes it; what is left out is as for all.

    ``address`` is ``s3://bucket``, ``s3://bucket/prefix/`` or a folder; ``None``: it is given up,
    nothing is in it any more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, Field(pattern=BUCKET_NAME)]
    address: str | None
    endpoint_url: str | None = None
    public_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None

    @property
    def is_s3(self) -> bool:
        """Whether it is reached by S3."""
        return (self.address or "").startswith(S3_SCHEME)

    @property
    def bucket(self) -> str:
        """The storage's own name of an S3 bucket."""
        return (self.address or "").removeprefix(S3_SCHEME).partition("/")[0]

    @property
    def prefix(self) -> str:
        """How the keys begin that are meant, in an S3 bucket."""
        return (self.address or "").removeprefix(S3_SCHEME).partition("/")[2] if self.is_s3 else ""

    def settings(self, of_all: "Settings") -> "Settings":
        """Return the settings of a deployment that has this bucket alone."""
        own = {
            "s3_endpoint_url": self.endpoint_url, "s3_public_url": self.public_url,
            "s3_region": self.region, "s3_access_key_id": self.access_key_id,
            "s3_secret_access_key": self.secret_access_key,
        }  # fmt: skip
        if self.endpoint_url and not self.public_url:
            own["s3_public_url"] = self.endpoint_url  # that of all is of another endpoint
        given = {name: value for name, value in own.items() if value is not None}
        bucket = f"{S3_SCHEME}{self.bucket}" if self.is_s3 else self.address or ""
        return of_all.model_copy(update={**given, "bucket": bucket, "buckets": None})


MOUNTS = TypeAdapter(Annotated[tuple[Mount, ...], Field(min_length=1)])


def read_mounts(settings: "Settings") -> tuple[Mount, ...]:
    """Return the buckets that the setting lists; none where one bucket is all.

    Raises ``ConfigurationError``, which names the field, but no value.
    """
    if settings.buckets is None:
        return ()
    if settings.bucket:
        raise ConfigurationError(f"AUDIOFUSE_BUCKET and {SETTING} exclude each other: set one")
    try:
        mounts = MOUNTS.validate_json(settings.buckets.get_secret_value())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "JSON"
        raise ConfigurationError(f"{SETTING}: {where}: {first['msg']}") from None
    names = [each.name for each in mounts]
    for each in mounts:
        if names.count(each.name) > 1:
            raise ConfigurationError(f"{SETTING}: two buckets are called {each.name}")
        if each.address == "" or (each.is_s3 and not each.bucket):
            raise ConfigurationError(f"{SETTING}: {each.name}: address names no bucket")
        if each.prefix and not each.prefix.endswith("/"):
            raise ConfigurationError(f"{SETTING}: {each.name}: address ends with no /")
    return mounts


def names_of(mounts: tuple[Mount, ...]) -> Callable[[str, str], list[str]]:
    """Return what gives the names of an object that an event names by S3 bucket and key."""

    def names(bucket: str, key: str) -> list[str]:
        return [
            f"{each.name}/{key}"
            for each in mounts
            if each.is_s3 and each.bucket == bucket and key.startswith(each.prefix)
        ]

    return names


def split(key: str) -> tuple[str, str]:
    """Return the name of an object's bucket, and its key there."""
    name, _, inner = key.partition("/")
    return name, inner


@dataclass(frozen=True)
class Mounted:
    """A bucket that is reached, and by which settings; ``store`` is ``None`` once it is given up.

    Of its keys those are meant that begin with ``prefix``.
    """

    name: str
    settings: "Settings"
    store: "Store | None"
    prefix: str = ""

    @property
    def top(self) -> str:
        """How the names of its objects begin."""
        return f"{self.name}/"

    def narrowed(self, inner: str) -> str | None:
        """Return how keys begin that begin with both prefixes; ``None`` if none can."""
        if inner.startswith(self.prefix):
            return inner
        return self.prefix if self.prefix.startswith(inner) else None

    def named(self, info: ObjectInfo) -> ObjectInfo:
        """Return an object under its name among all."""
        return replace(info, key=self.top + info.key)


class MountedStore:
    """Several buckets as one, each of which may be away without the others."""

    bucket = ""

    def __init__(self, mounts: Mapping[str, Mounted]) -> None:
        """Have these buckets, by their names."""
        self.mounts = mounts

    def place(self, key: str) -> tuple[str, str]:
        """Return the bucket in which an object lies, and its key there."""
        return split(key)

    def where(self, prefix: str = "") -> Filter:
        """Return which items are of these buckets."""
        within = tuple(Place(each.top, each.name) for each in self.mounts.values())
        return Filter(prefix=prefix, within=within)

    def parts(self, prefix: str = "") -> Sequence[str]:
        """Return the prefixes by which the buckets are looked through one by one."""
        if "/" in prefix:
            return [prefix]
        return [each.top for each in self.mounts.values() if each.top.startswith(prefix)]

    def resolved(self, key: str) -> "tuple[Store, str] | None":
        """Return the store that has an object, and its key there; ``None`` if none can have it."""
        mounted, inner = self._mounted(key)
        if mounted.store is None or not inner.startswith(mounted.prefix):
            return None
        return mounted.store, inner

    def meant(self, prefix: str) -> "tuple[Mounted, str] | None":
        """Return the bucket in which all is that begins so, and how keys begin there.

        ``None`` if that is more than one bucket, or none, or nothing of one.
        """
        name, inner = split(prefix)
        mounted = self.mounts.get(name) if "/" in prefix else None
        if mounted is None or mounted.store is None:
            return None
        narrowed = mounted.narrowed(inner)
        return None if narrowed is None else (mounted, narrowed)

    def _mounted(self, key: str) -> tuple[Mounted, str]:
        """Find the bucket; that none has this name says nothing of the object."""
        name, inner = split(key)
        if name not in self.mounts:
            detail = f"no bucket is called {name[:63]!r} in {SETTING} of this process"
            raise Rejected(Reason.UNREADABLE, detail)
        return self.mounts[name], inner

    def head(self, key: str) -> ObjectInfo | None:
        """Look at an object in its bucket."""
        found = self.resolved(key)
        info = found[0].head(found[1]) if found else None
        return self._mounted(key)[0].named(info) if info else None

    def _here(self, info: ObjectInfo) -> "tuple[Store, ObjectInfo]":
        found = self.resolved(info.key)
        if found is None:
            raise Unavailable(f"{info.key} lies in no bucket any more")
        store, inner = found
        return store, replace(info, key=inner)

    def read(self, info: ObjectInfo) -> bytes:
        """Read an object in its bucket."""
        store, inner = self._here(info)
        return store.read(inner)

    def part(self, info: ObjectInfo, first: int, count: int) -> bytes:
        """Read a part of it."""
        store, inner = self._here(info)
        return store.part(inner, first, count)

    @contextmanager
    def _opened(self, info: ObjectInfo) -> Iterator[Path]:
        store, inner = self._here(info)
        with store.open(inner) as path:
            yield path

    def open(self, info: ObjectInfo) -> AbstractContextManager[Path]:
        """Lend it as a file."""
        return self._opened(info)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List bucket after bucket; ``Unavailable`` if one that has a part of it is away."""
        for each in self.mounts.values():
            if each.top.startswith(prefix):
                inner: str | None = each.prefix
            elif prefix.startswith(each.top):
                inner = each.narrowed(prefix.removeprefix(each.top))
            else:
                continue
            if each.store is not None and inner is not None:
                yield from map(each.named, each.store.list(inner))
