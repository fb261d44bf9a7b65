"""The pool to which Celery gives messages, as jobs for threads (``message_threads.py``).

What Celery knows of its messages (reserved, active, done, acknowledged) is changed by the thread
that takes them alone: threads beside it leave notes, which it reads. So whatever asks for that, and
whatever goes through the broker's connection, needs no lock.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from celery.concurrency.base import BasePool
from celery.worker import state

from audiofuse.workers.telemetry.names import Lane

Note = Callable[[], object]  # what Celery's thread is to do


@dataclass(frozen=True, eq=False)
class Job:
    """A message in hand: ``work`` is what Celery wants to be done, in any thread.

    ``begun`` is to be told the monotonic time, ``ended`` what the work returned, both in Celery's.
    """

    request: Any
    lane: Lane
    work: Callable[[], Any]
    begun: Callable[[float], object]
    ended: Callable[[Any], object]

    def do(self, note: Callable[[Note], object]) -> None:
        """Work, and leave notes for Celery's thread; nothing is done if it was revoked."""
        if self.request.id in state.revoked:
            note(partial(self.ended, None))
            return
        note(partial(self.begun, time.monotonic()))
        note(partial(self.ended, self.work()))


class Pool(BasePool):  # type: ignore[misc]
    """Hands on what Celery gives it, to whoever ``take`` is."""

    body_can_be_buffer = True  # nothing leaves the process
    signal_safe = False

    def __init__(self, *args: Any, **options: Any) -> None:
        """Begin with nothing in hand; until there is a worker everything goes to nobody."""
        super().__init__(*args, **options)
        self.take: Callable[[Job], object] = _nobody
        self._jobs: set[Job] = set()  # changed by Celery's thread only

    @property
    def messages(self) -> list[Any]:
        """What is in hand and not acknowledged."""
        return [job.request.message for job in self._jobs]

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        callback: Callable[[Any], object],
        accept_callback: Any,
        **_: Any,
    ) -> None:
        """Hand a message on; ``callback`` and ``accept_callback`` are methods of its request."""
        del kwargs
        request = accept_callback.__self__  # nowhere else does Celery tell a pool whose it is

        def ended(result: Any) -> None:
            self._jobs.discard(job)
            if result is None:
                request.revoked()  # says so, and acknowledges it
            else:
                callback(result)

        lane = Lane(request.delivery_info["routing_key"])
        name, task_id, about = args[:3]  # then the body and how to read it: that was done already
        work = partial(target, name, task_id, about, request.message.payload, None, None)
        job = Job(request, lane, work, partial(accept_callback, os.getpid()), ended)
        self._jobs.add(job)
        self.take(job)

    def terminate_job(self, pid: int, signal: int | None = None) -> NoReturn:
        """Refuse: Celery asks for it where a message is revoked while it is worked on."""
        raise NotImplementedError(
            "what is worked on is not ended: it is done by a thread. Remove the object from the "
            "bucket if its item should go"
        )

    def grow(self, n: int = 1) -> NoReturn:
        """Refuse."""
        raise NotImplementedError(
            "messages in hand are set before the start: AUDIOFUSE_IN_HAND, or celery's -c"
        )

    shrink = grow

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "threads": threading.active_count()}


def _nobody(job: Job) -> NoReturn:
    raise RuntimeError(f"no worker was started that could take {job.request}")
