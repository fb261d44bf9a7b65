"""Snapshots of an index, kept beside the encoders: whoever has one need not hear every sound again.

    take     Qdrant ──> a temporary file ──> <registry>/snapshots/<version>/<name>
    restore  <registry>/snapshots/<version>/<name> ──> a temporary file ──> Qdrant

That of an index's moments lies beside that of its items, as ``<name>.moments``.

Qdrant keeps what it makes on the disk with which it would be lost. What it is asked here is its
REST interface, as its own documentation has it ("Snapshots"): the client of Qdrant loads a
snapshot into memory, these may be larger than that.
"""

import hashlib
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.errors import AudiofuseError, ConfigurationError, Unavailable
from audiofuse.core.index.index import Generation, open_index
from audiofuse.core.settings import Settings
from audiofuse.core.storage.files import open_files

FOLDER = "snapshots"
MOMENTS = ".moments"  # ends the name of the file that has the moments of a snapshot
CONNECT_S = 10.0  # to be connected; lower: a slow network is taken for a server that is away
WORK_S = 3600.0  # to make one, or to take one in; lower: large collections have none
PIECE = 2**20  # bytes that are copied at once


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that is kept: ``version/file``, and how large it is in bytes, moments too."""

    name: str
    size: int


class Snapshots:
    """Takes and restores them. Methods raise ``Unavailable`` when Qdrant or storage is away."""

    def __init__(self, settings: Settings) -> None:
        """Keep those of the settings' index in their registry; nothing is asked yet."""
        self._index = open_index(settings)
        self._files = open_files(open_registry(settings).place, settings)
        self._url = settings.qdrant_url
        key, ca_file = settings.qdrant_api_key, settings.ca_file
        self._connect = partial(
            httpx.Client,
            base_url=self._url,
            headers={"api-key": key.get_secret_value()} if key else {},
            verify=ssl.create_default_context(cafile=ca_file) if ca_file else True,
            timeout=httpx.Timeout(WORK_S, connect=CONNECT_S),
        )

    def kept(self) -> list[Snapshot]:
        """Return all that are kept, in the order of their names: of a version the oldest first."""
        files = {
            name.removeprefix(f"{FOLDER}/"): size
            for name, size in self._files.list()
            if name.startswith(f"{FOLDER}/")
        }
        return [
            Snapshot(name, size + files.get(name + MOMENTS, 0))
            for name, size in files.items()
            if not name.endswith(MOMENTS)
        ]

    def take(self) -> Snapshot:
        """Take one of the live generation and keep it; the server's own copy is deleted.

        Raises ``ConfigurationError`` if nothing is live, or if several nodes share the collection:
        of those each makes a snapshot of what it has.
        """
        live = self._index.live()
        if live is None:
            raise ConfigurationError("nothing is live, so there is nothing to take a snapshot of")
        self._refuse_clusters()
        with _temporary() as items, _temporary() as moments:
            name = f"{live.version}/{self._fetch(live, items)}"
            self._fetch(live.moments, moments)
            # Moments first: a snapshot that is listed has its own.
            self._files.upload(moments, f"{FOLDER}/{name}{MOMENTS}")
            self._files.upload(items, f"{FOLDER}/{name}")
            return Snapshot(name, items.stat().st_size + moments.stat().st_size)

    def _fetch(self, generation: Generation, path: Path) -> str:
        """Have a snapshot made and download it; return the name that the server gave it."""
        url = _snapshots(generation)
        made = self._ask("POST", url, params={"wait": "true"}).json()["result"]
        try:
            self._download(f"{url}/{made['name']}", path, made.get("checksum"))
        finally:
            self._ask("DELETE", f"{url}/{made['name']}", params={"wait": "true"})
        return str(made["name"])

    def restore(self, name: str) -> Generation:
        """Put one back as the collection of its version, which goes live if nothing is.

        What the collection holds is replaced. Raises ``ConfigurationError`` if there is no such
        snapshot. One that an earlier release took has no moments: ``audiofuse reconcile`` brings
        them.
        """
        if name not in {each.name for each in self.kept()}:
            raise ConfigurationError(f"no snapshot {name!r} is kept: see audiofuse snapshot list")
        generation = self._index.generation(name.partition("/")[0])
        files = {file for file, _ in self._files.list()}
        for file, each in ((name + MOMENTS, generation.moments), (name, generation)):
            if f"{FOLDER}/{file}" in files:
                self._put_back(f"{FOLDER}/{file}", each)
        if self._index.live() is None:
            self._index.promote(generation)
        return generation

    def _put_back(self, file: str, generation: Generation) -> None:
        with _temporary() as path:
            self._files.download(file, path)
            with path.open("rb") as content:
                self._ask(
                    "POST", f"{_snapshots(generation)}/upload", files={"snapshot": content},
                    params={"wait": "true", "priority": "snapshot"},
                )  # fmt: skip

    def count(self, generation: Generation) -> int:
        """Return how many items a generation has."""
        return self._index.count(generation)

    def _refuse_clusters(self) -> None:
        peers = self._ask("GET", "/cluster").json()["result"].get("peers", {})
        if len(peers) > 1:
            raise ConfigurationError(
                f"{len(peers)} nodes share the index, and a snapshot has what one of them has: "
                "take one of each node by Qdrant's own means, or rely on replicas and backfill"
            )

    def _download(self, path: str, target: Path, checksum: str | None) -> None:
        digest = hashlib.sha256()
        with self._asking(path) as client, client.stream("GET", path) as answer:
            if answer.is_error:
                answer.read()
            answer.raise_for_status()
            with target.open("wb") as file:
                for piece in answer.iter_bytes(PIECE):
                    digest.update(piece)
                    file.write(piece)
        if checksum not in {None, digest.hexdigest()}:
            raise Unavailable(f"{path} was damaged on its way: take it again")

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._asking(path) as client:
            return client.request(method, path, **options).raise_for_status()

    @contextmanager
    def _asking(self, path: str) -> Iterator[httpx.Client]:
        try:
            with self._connect() as client:
                yield client
        except httpx.HTTPStatusError as error:
            status, said = error.response.status_code, error.response.text[:300]
            raise AudiofuseError(f"{self._url}{path}: Qdrant says {status}: {said}") from error
        except httpx.TransportError as error:
            raise Unavailable(f"Qdrant does not answer at {self._url}: {error}") from error


def _snapshots(generation: Generation) -> str:
    return f"/collections/{generation.collection}/snapshots"


@contextmanager
def _temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="audiofuse-") as folder:
        yield Path(folder, "snapshot")
