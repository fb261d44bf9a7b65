"""What the service tells of itself: that it is alive, ready, and which rollout it follows.

The probes take no thread that questions take, so that they answer whatever the index does: else a
stalled index would have healthy services restarted, which then load their encoders anew.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from fastapi import FastAPI, Response
from redis import RedisError

from audiofuse.core.bundles.document import POLL_S
from audiofuse.core.errors import AudiofuseError
from audiofuse.core.search.search import Searcher
from audiofuse.workers.queue.followers import NEVER, Followers
from audiofuse.workers.service.admission.problems import answers
from audiofuse.workers.service.models import Alive, Health, Version

log = logging.getLogger(__name__)

# How long /readyz waits for the index. Higher: a slow index counts as one that answers. It must be
# below the timeout of whoever asks (Kubernetes: 5 s, set in search.yaml).
PATIENCE_S = 1.5
GLANCE_S = 0.01  # how often it looks whether the index has answered


def add_probes(app: FastAPI, searcher: Searcher) -> None:
    """Serve ``/healthz`` and ``/readyz``."""
    index = Reachable(searcher.check)

    @app.get("/healthz", tags=["probes"])
    async def alive() -> Alive:
        """Answer that the process is alive, and on what its encoders run."""
        return Alive(encoders=searcher.run_on())

    @app.get("/readyz", tags=["probes"], responses=answers(422) | {503: {"model": Health}})
    async def ready(response: Response, version: Version = "") -> Health:
        """Answer 200 once an encoder (that of ``version``) is loaded and the index answers."""
        loaded, index_answers = searcher.loaded, await index.answers()
        is_loaded = version in loaded if version else bool(loaded)
        response.status_code = 200 if is_loaded and index_answers else 503
        return Health(loaded=sorted(loaded), index="answers" if index_answers else "away")


class Reachable:
    """Whether something answers: asked in one thread of its own, however often one wants to know.

    While it hangs there is that one thread, and everybody is told that it is away.
    """

    def __init__(self, check: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
        """``check`` raises an error of ours if it is away; it may hang."""
        self._check = check
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._look: Future[bool] | None = None  # the last one, which may be under way

    async def answers(self) -> bool:
        """Return whether it answers within the patience, without holding up the event loop."""
        look, deadline = self._begin(), time.monotonic() + self._patience_s
        while not look.done() and time.monotonic() < deadline:  # noqa: ASYNC110 - it is a thread's
            await asyncio.sleep(GLANCE_S)
        return look.done() and look.result()

    def _begin(self) -> "Future[bool]":
        """Return the look that is under way, or a new one."""
        with self._lock:
            if self._look is None or self._look.done():
                self._look = Future()
                run = threading.Thread(target=self._run, args=[self._look], daemon=True)
                run.start()
            return self._look

    def _run(self, look: "Future[bool]") -> None:
        try:
            self._check()
        except AudiofuseError as error:
            log.warning("the index is away: %s", error)
            look.set_result(False)
        except Exception:
            log.exception("the index cannot be asked")
            look.set_result(False)
        else:
            look.set_result(True)


class Announcer:
    """Says in Redis which rollout document this service follows; see ``queue/followers.py``.

    It goes on with the document before while the encoders of a new one are loaded.
    """

    def __init__(self, followers: Followers, name: str, runs_on: Callable[[], str] = str) -> None:
        """Speak as the process ``name``, which ``runs_on`` what it says; nothing is said yet."""
        self._followers = followers
        self._name = name
        self._runs_on = runs_on
        self._tag: str | None = NEVER
        self._ends = threading.Event()
        self._speaking = threading.Lock()  # so that nothing is said after the end
        self._was_heard = True

    def prepared(self, tag: str | None) -> None:
        """Note that everything is loaded that the document with this tag names."""
        self._tag = tag

    def run(self) -> None:
        """Say so again and again until this ends; run this in a thread."""
        while not self._ends.wait(POLL_S):
            self.tell()

    def tell(self) -> None:
        """Say it once. A broker that is away keeps nobody from searching."""
        try:
            with self._speaking:
                if not self._ends.is_set():
                    self._followers.follow(self._name, self._tag, self._runs_on())
        except RedisError as error:
            if self._was_heard:
                log.warning("rollouts do not know of this service: %s", error)
            self._was_heard = False
        else:
            self._was_heard = True

    def end(self) -> None:
        """Say that this process ends, so that no rollout waits for it."""
        self._ends.set()
        try:
            with self._speaking:
                self._followers.leave(self._name)
        except RedisError as error:
            log.warning("rollouts will wait for this service in vain: %s", error)
