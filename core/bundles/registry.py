"""The registry: encoder bundles by version, and the document that says which of them is live.

    <registry>/<version>/...               a bundle; it exists once its manifest.json does
    <registry>/rollout-<index name>.json   see core/bundles/document.py
    <registry>/scorecards/<version>.json   see core/evaluation/scorecards.py

The registry is a folder or a prefix of an S3 bucket. No bundle ever changes; what does is written
only on the condition that it is still what was read.
"""

import logging
import math
import re
import tempfile
import time
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from audiofuse.core.bundles.document import Rollout
from audiofuse.core.bundles.manifest import MANIFEST, Manifest, bundle_version, verify_bundle
from audiofuse.core.errors import BundleError, ConfigurationError, ObjectChanged, Unavailable
from audiofuse.core.settings import Settings
from audiofuse.core.storage.files import Files, open_files

log = logging.getLogger(__name__)


def open_registry(settings: Settings) -> "Registry":
    """Open the registry that the settings name; nothing is asked yet."""
    place, document = settings.registry_place, f"rollout-{settings.index_name}.json"
    return Registry(open_files(place, settings), place, settings.home / "bundles", document)


def locate(settings: Settings, version: str) -> Path:
    """Return the folder of a version's bundle.

    It is AUDIOFUSE_ENCODER, if that is this version, else fetched from the registry. Raises what
    ``Registry.fetch`` does.
    """
    own = settings.encoder
    if own and bundle_version(own) == version:
        return own
    return open_registry(settings).fetch(version)


class Registry:
    """Bundles by version. Every method raises ``Unavailable`` when the registry is away."""

    def __init__(self, files: Files, place: str, cache: Path, document: str) -> None:
        """Keep bundles and ``document`` in ``files``, which are at ``place``.

        Bundles from elsewhere than a folder are kept in the folder ``cache``.
        """
        self.place = place
        self._files = files
        self._cache = cache
        self._document = document

    def versions(self) -> list[str]:
        """Return the versions that are published."""
        paths = (PurePosixPath(name) for name, _ in self._files.list())
        return sorted(p.parts[0] for p in paths if len(p.parts) == 2 and p.name == MANIFEST)  # noqa: PLR2004 - version and file

    def has(self, version: str) -> bool:
        """Whether a version is published."""
        return self._files.get(_name(version, MANIFEST)) is not None

    def publish(self, bundle: Path) -> str:
        """Put a bundle here, verified, and return its version; once more changes nothing.

        Raises ``BundleError`` if the bundle is damaged, here or on its way, and
        ``ConfigurationError`` if its version exists with other content.
        """
        manifest, version = verify_bundle(bundle), bundle_version(bundle)
        content = (bundle / MANIFEST).read_bytes()
        if not self._is_published(version, content):
            for name in manifest.files:
                self._files.upload(bundle / name, _name(version, name))
            with tempfile.TemporaryDirectory(prefix="audiofuse-") as temporary:
                self._download(version, content, Path(temporary, version))
            self._publish_manifest(version, content)
        return version

    def _is_published(self, version: str, content: bytes) -> bool:
        known = self._files.get(_name(version, MANIFEST))
        if known and known[0] != content:
            raise ConfigurationError(
                f"{self.place} has another bundle named {version}: publish it under another name"
            )
        return known is not None

    def _publish_manifest(self, version: str, content: bytes) -> None:
        """Write it twice: that the second time is refused shows that conditions are honoured."""
        name = _name(version, MANIFEST)
        try:
            self._files.put(name, content, None)
            self._files.put(name, content, None)
        except ObjectChanged as error:
            if not self._is_published(version, content):
                raise Unavailable(f"{version} could not be published now: {error}") from error
        else:
            raise ConfigurationError(
                f"{self.place} ignores conditional writes: two operators could both win"
            )

    def fetch(self, version: str) -> Path:
        """Return a folder with the verified bundle; what is there already is not fetched again.

        Raises ``ConfigurationError`` if there is no such version, ``BundleError`` if it is damaged.
        """
        folder = (self._files.root or self._cache) / _checked(version)
        if not _is_whole(folder):
            manifest = self._files.get(_name(version, MANIFEST))
            if manifest is None:
                raise ConfigurationError(f"no encoder {version} is published in {self.place}")
            if self._files.root:
                verify_bundle(folder)  # raises what is wrong with it
            self._fill_cache(version, manifest[0], folder)
        return folder

    def _fill_cache(self, version: str, manifest: bytes, folder: Path) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=".fetching-") as temporary:
            fetched = Path(temporary, "fetched")
            self._download(version, manifest, fetched)
            if _is_whole(folder):
                return  # another process was faster
            if folder.exists():
                folder.rename(Path(temporary, "damaged"))
            fetched.rename(folder)

    def _download(self, version: str, manifest: bytes, folder: Path) -> None:
        """Download the bundle with this manifest into a new folder, and verify it."""
        folder.mkdir()
        (folder / MANIFEST).write_bytes(manifest)
        if bundle_version(folder) != version:
            raise BundleError(f"what {self.place} calls {version} is another bundle")
        for name in Manifest.model_validate_json(manifest).files:
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise BundleError(f"{version} names a file outside itself: {name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._files.download(_name(version, name), path)
            except ObjectChanged as error:
                raise BundleError(f"{self.place} lacks {name} of {version}") from error
        verify_bundle(folder)

    def rollout(self) -> tuple[Rollout | None, str | None]:
        """Return the document and its tag; ``None`` when no rollout was ever started."""
        found = self._files.get(self._document)
        if found is None:
            return None, None
        try:
            return Rollout.model_validate_json(found[0]), found[1]
        except ValidationError as error:
            raise ConfigurationError(f"{self._document} in {self.place}: {error}") from error

    def write(self, rollout: Rollout, tag: str | None) -> None:
        """Write the document, if it still is the one with ``tag``.

        Raises ``ObjectChanged`` if it is not, and ``Unavailable`` if that is not known.
        """
        content = rollout.model_dump_json(indent=2).encode()
        try:
            self._files.put(self._document, content, tag)
        except ObjectChanged:
            found = self._files.get(self._document)
            if found is None or found[0] != content:  # else it is our own, whose answer was lost
                raise


class Watch:
    """The rollout as a long-running process sees it; while the registry is away, as it last was.

    ``tag`` is that of the document last read, ``None`` while there never was one; ``read_at`` is
    the monotonic time at which that reading began. What was decided before it is known here.
    """

    def __init__(self, registry: Registry) -> None:
        """Watch the document of ``registry``."""
        self._registry = registry
        self._last: Rollout | None = None
        self._trouble = ""
        self.tag: str | None = None
        self.read_at = -math.inf

    def look(self) -> Rollout | None:
        """Return the document as it is now, else as it was; ``Unavailable`` if never seen.

        A document that has vanished says nothing: it is taken to be unreadable.
        """
        began = time.monotonic()
        try:
            rollout, tag = self._read()
        except (Unavailable, ConfigurationError) as error:
            if self.read_at == -math.inf:
                raise
            self._report(f"the rollout's document cannot be read: {error}")
        else:
            self._report("")
            self._last, self.tag, self.read_at = rollout, tag, began
        return self._last

    def _read(self) -> tuple[Rollout | None, str | None]:
        rollout, tag = self._registry.rollout()
        if rollout is None and self._last is not None:
            raise Unavailable(f"it has vanished from {self._registry.place}")
        return rollout, tag

    def _report(self, trouble: str) -> None:
        """Log what keeps the document from being read once, and that it is readable again."""
        if trouble and not self._trouble:
            log.warning("%s; it is taken to be as it was", trouble)
        if self._trouble and not trouble:
            log.info("the rollout's document can be read again")
        self._trouble = trouble


def _name(version: str, name: str) -> str:
    return f"{_checked(version)}/{name}"


def _checked(version: str) -> str:
    """Return the version, which is the name of one folder."""
    if not re.fullmatch(r"\w[\w.-]*", version):
        raise ConfigurationError(f"{version!r} is no encoder version")
    return version


def _is_whole(folder: Path) -> bool:
    try:
        verify_bundle(folder)
    except BundleError:
        return False
    return True
