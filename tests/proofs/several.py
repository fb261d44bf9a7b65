"""The chaos's deployment of several buckets, and the stage on which one of them is in trouble.

``field`` is on S3, whose events go to SQS; ``far`` on another S3, which may hang; ``studio`` and
``spare`` are folders that are watched. The query service is asked all the while.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import httpx
from deployment import BUCKET, QUIET_S, WORKERS, Deployment, until
from pydantic import SecretStr
from stage import Content, Stage

from audiofuse.core.settings import environment
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.mounts import read_mounts, split
from audiofuse.workers.deployment.local import free_port

FIELD, FAR, FOLDERS = "field", "far", ("studio", "spare")
FAR_BUCKET = "recordings"
ALL = (FIELD, FAR, *FOLDERS)
FOUND_S = 30.0  # what is put into a bucket that is well is found by then, on a machine that is busy
WATCHING = "watching"  # what an intake logs of a folder once it sees all that happens there


class SeveralBuckets(Deployment):
    """Four buckets of one deployment, each of which a scenario may take away."""

    def __init__(self, root: Path) -> None:
        """Start everything; return once all answer and all folders are watched."""
        self.truth: dict[str, Content] = {}  # of all buckets, whatever scenario it is from
        super().__init__(root, s3=True)
        for name in ("far", "folders", "search"):
            self.start(name)
        until(lambda: self.far.create_bucket(Bucket=FAR_BUCKET), "the bucket that is far")
        until(lambda: self.log("folders").count(WATCHING) == len(FOLDERS), "watching")
        until(self.answers, "the query service")

    def _s3(self) -> dict[str, Any]:
        """Return the settings; folders are made, servers not started yet."""
        self._ports |= {name: free_port() for name in ("far", "search")}
        for name in FOLDERS:
            (self.root / name).mkdir()
        told = super()._s3()
        del told["bucket"]
        return told | {
            "buckets": json.dumps([*self._buckets().values()]),
            "search_url": f"http://127.0.0.1:{self._ports['search']}",
        }

    def _buckets(self) -> dict[str, Mapping[str, str | None]]:
        far = f"http://127.0.0.1:{self._ports['far']}"
        return {
            FIELD: {"name": FIELD, "address": f"s3://{BUCKET}"},
            FAR: {"name": FAR, "address": f"s3://{FAR_BUCKET}", "endpoint_url": far},
            **{name: {"name": name, "address": str(self.root / name)} for name in FOLDERS},
        }

    def _command(self, name: str) -> list[str]:
        port = str(self._ports.get(name))
        options = {
            "far": ["-m", "moto.server", "-H", "127.0.0.1", "-p", port],
            "folders": ["-m", "audiofuse", "intake", "folder"],
            "search": ["-m", "audiofuse", "serve", "--port", port],
        }
        return [sys.executable, *options[name]] if name in options else super()._command(name)

    @cached_property
    def far(self) -> Any:
        """A client of the S3 that is far."""
        mounts = {each.name: each for each in read_mounts(self.settings)}
        return s3_client(mounts[FAR].settings(self.settings))

    def answers(self) -> bool:
        """Whether the query service is ready."""
        return httpx.get(f"{self.settings.search_url}/readyz").is_success

    def have(self, more: Iterable[Mapping[str, str | None]] = ()) -> None:
        """Have these buckets besides: one worker after the other gets to know, then all else."""
        buckets = SecretStr(json.dumps([*self._buckets().values(), *more]))
        self.settings = self.settings.model_copy(update={"buckets": buckets})
        for name in WORKERS:
            self.stop_orderly(name)
            self.start(name)
            self.wait_until_ready(name)
        for name in ("intake", "folders", "search"):
            self.kill(name)
            self.start(name)
        until(self.answers, "the query service")

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command of the operator, which ends with ``code``; return what it tells."""
        done = subprocess.run(
            [sys.executable, "-m", "audiofuse", *words], capture_output=True, text=True,
            env=os.environ | environment(self.settings), check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{words} ended with {done.returncode}: {done.stderr}"
        return done.stdout + done.stderr

    @contextmanager
    def denied(self) -> Iterator[None]:
        """Let nothing be read in the bucket that is far, while it is listed and looked at."""
        denying = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject",
                   "Resource": f"arn:aws:s3:::{FAR_BUCKET}/*"}  # fmt: skip
        policy = json.dumps({"Version": "2012-10-17", "Statement": [denying]})
        self.far.put_bucket_policy(Bucket=FAR_BUCKET, Policy=policy)
        try:
            yield
        finally:
            self.far.delete_bucket_policy(Bucket=FAR_BUCKET)

    @contextmanager
    def replaced(self, name: str, *, by_nothing: bool) -> Iterator[None]:
        """Move a folder away, as a mount that is missing does, and back; or put an empty one."""
        there, away = self.root / name, self.root / f"{name}-away"
        there.rename(away)
        if not by_nothing:
            there.mkdir()
        try:
            yield
        finally:
            if not by_nothing:
                there.rmdir()
            away.rename(there)


@dataclass
class SeveralStage(Stage):
    """Plays on all buckets, whose keys begin with their names; ``open_to`` are changed."""

    deployment: SeveralBuckets
    open_to: tuple[str, ...] = ALL

    def __post_init__(self) -> None:
        """Look at everything: what a scenario does to one bucket must not be seen in another."""
        self.truth, self.scene, self.prefix = self.deployment.truth, self.prefix, ""

    def new_key(self, suffix: str = "") -> str:
        """Return a key that was never used, in one of the buckets that are open."""
        return f"{self.random.choice(self.open_to)}/{self.scene}{super().new_key(suffix)}"

    def put(self, key: str, content: Content, mtime: float | None = None) -> str:
        """Write an object; a folder keeps no user metadata."""
        del mtime
        name, inner = split(key)
        self.told += 1
        if client := self._client(name):
            client.put_object(
                Bucket=self._named(name), Key=inner, Body=content.data,
                Metadata=dict(content.words),
            )  # fmt: skip
        else:
            content = replace(content, words=())
            path = self.deployment.root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.data)
        self.truth[key] = content
        self._tell_of(key)
        return key

    def delete(self, key: str) -> str:
        """Delete an object."""
        name, inner = split(key)
        del self.truth[key]
        self.told += 1
        if client := self._client(name):
            client.delete_object(Bucket=self._named(name), Key=inner)
        else:
            (self.deployment.root / key).unlink()
        self._tell_of(key)
        return key

    def _client(self, name: str) -> Any:
        return {FIELD: self.deployment.s3, FAR: self.deployment.far}.get(name)

    def _named(self, name: str) -> str:
        return {FIELD: BUCKET, FAR: FAR_BUCKET}[name]

    def _tell_of(self, key: str) -> None:
        """Send the event of a bucket whose server knows no queue."""
        if split(key)[0] == FAR:
            self.tell([key])

    def event(self, key: str) -> str:
        """Return the event that tells of a key of a bucket on S3."""
        name, inner = split(key)
        s3 = {"bucket": {"name": self._named(name)}, "object": {"key": quote_plus(inner)}}
        record = {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": s3}
        return json.dumps({"Records": [record]})

    def open_keys(self) -> list[str]:
        """Return the keys in the buckets that are open."""
        return [key for key in self.truth if split(key)[0] in self.open_to]

    def others_are_found(self, seconds: float, *, trouble: str) -> None:
        """Put a sound now and then into each other bucket; each is found by words soon."""
        names = [name for name in self.open_to if name != trouble]
        deadline, slowest_s = time.monotonic() + seconds, 0.0
        while time.monotonic() < deadline:
            slowest_s = max(slowest_s, *(self._until_found(name, FOUND_S) for name in names))
        self.notes.append(f"without {trouble}: found after at most {slowest_s:.1f} s")

    def _until_found(self, name: str, seconds: float = QUIET_S) -> float:
        """Put a sound into a bucket, and return after how many seconds it was found."""
        sound = Content(self.sounds[-1].read_bytes())
        key = self.put(f"{name}/{self.scene}heard-{self.told:05}.wav", sound)
        asked, started = {"q": "a sound", "prefix": key, "limit": "1"}, time.monotonic()

        def found() -> bool:
            answer = httpx.get(f"{self.deployment.settings.search_url}/v1/search", params=asked)
            return bool(answer.raise_for_status().json()["hits"])

        until(found, f"{key} to be found", seconds)
        return time.monotonic() - started

    def settle(self) -> None:
        """Wait until all is quiet; a folder's last change is known by its being found."""
        for name in FOLDERS:
            self._until_found(name)
        self.await_quiet()
