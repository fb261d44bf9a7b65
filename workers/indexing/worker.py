"""The worker as it runs: takes messages, acknowledges what is settled, keeps hold of the rest."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from redis import Redis, RedisError

from audiofuse.core.settings import Settings
from audiofuse.core.threads import vital_thread
from audiofuse.workers.indexing.decoding.pool import Decoders
from audiofuse.workers.indexing.exchange.client import DeviceClient
from audiofuse.workers.indexing.message_threads import MessageThreads
from audiofuse.workers.indexing.versions import Versions
from audiofuse.workers.indexing.watchdog import Consumption
from audiofuse.workers.queue.consumer import Consumer
from audiofuse.workers.queue.deliveries import Deliveries
from audiofuse.workers.queue.earlier import adopt
from audiofuse.workers.queue.followers import Follower
from audiofuse.workers.queue.lanes import Lanes
from audiofuse.workers.queue.pool import Job
from audiofuse.workers.telemetry import metrics
from audiofuse.workers.telemetry.metrics import LOADED, Process
from audiofuse.workers.telemetry.names import Lane, Outcome

log = logging.getLogger(__name__)

POLL_S = 0.1  # seconds between two acknowledgements while the worker stops
# How often, in a visibility timeout, the broker is told what is in hand. Raised, Redis has more to
# do; lowered, fewer of these calls may fail before a message is delivered twice.
HOLDS_A_TIMEOUT = 6
# Seconds for which threads whose decoding was ended may take to let go of their messages. Raised, a
# stop lasts longer if one hangs; lowered, a count of an unfinished decoding may stay.
LET_GO_S = 5.0


class Worker:
    """What a worker process consists of; ``build_worker`` makes one."""

    def __init__(  # noqa: PLR0913 - by name only, from one place
        self,
        *,
        settings: Settings,
        consumer: Consumer,
        redis: Redis,
        stopping: threading.Event,
        working: Counter[Lane],
        versions: Versions,
        decoders: Decoders,
        device: DeviceClient,
        follower: Follower,
        deliveries: Deliveries,
        settle: Callable[[str, Lane, float | None], Outcome | None],
        beside_live: int,
        beside: Mapping[str, Callable[[], None]],
    ) -> None:
        """Begin to work on what the ``consumer`` takes; ``beside`` are further threads, by name.

        ``settle`` does what a message asks for, in its thread; see ``RetryPolicy``.
        """
        self.settle = settle
        self._settings = settings
        self._consumer = consumer
        self._redis = redis
        self._lanes = Lanes(redis, settings.index_name)
        self._stopping = stopping
        self._stopped = threading.Event()
        self._reported = threading.Event()  # that something has ended
        self._consumption = Consumption()
        self._versions = versions
        self._decoders = decoders
        self._device = device
        self._follower = follower
        self._deliveries = deliveries
        self._threads = MessageThreads(settings.in_hand, self._report, beside_live, working)
        self._hold_s = settings.redelivery_s / HOLDS_A_TIMEOUT
        for name, run in {"hold": self._hold, **beside}.items():
            vital_thread(name, run)
        self._tell_metrics()

    def _tell_metrics(self) -> None:
        """Tell what is asked for at each scrape, and that Celery's loop goes round."""
        LOADED[Process.WORKER].versions = lambda: [
            each.generation.version for each in self._versions.loaded
        ]
        for lane in Lane:
            metrics.IN_HAND.labels(lane).set_function(partial(self._in_hand, lane))
        metrics.HEARTBEAT.set_to_current_time()
        # In each turn of its loop, which ends while Celery connects anew, as do timers.
        self._consumer.hub.on_tick.add(self._turn)

    def _in_hand(self, lane: Lane) -> int:
        return sum(each.delivery_info["routing_key"] == lane for each in self._consumer.held())

    def take(self, job: Job) -> None:
        """Take a message in hand; once the worker stops it goes back with the channel's end."""
        if not self._stopping.is_set():
            if job.request.delivery_info["redelivered"]:
                metrics.REDELIVERIES.labels(job.lane).inc()
            self._consumption.goes_on()
            self._threads.take(job)

    def stop(self) -> None:
        """Finish what is begun, within the grace period; the rest stays with the broker.

        What is still decoded then is let go of as if it had not been begun: nothing is rejected,
        no point goes, and no death of a worker is counted.
        """
        self._stopping.set()
        self._threads.begin_no_more()
        grace_s = min(self._settings.grace_s, self._settings.redelivery_s)  # of a default
        self._finish(grace_s)
        self._decoders.close()
        self._finish(LET_GO_S)
        log.info("stopped; %d messages go back", len(self._consumer.held()))
        self._device.close()
        self._stopped.set()
        self._follower.leave()

    def _finish(self, seconds: float) -> None:
        """Acknowledge what ends until nothing is worked on, for so long at the most."""
        deadline = time.monotonic() + seconds
        try:
            while self._threads.at_work() and (left_s := deadline - time.monotonic()) > 0:
                self._turn(min(left_s, POLL_S))
            self._turn()
            self._consumer.tell()
        except Exception as error:  # noqa: BLE001 - the connection is lost, and none is made any more
            log.warning("what was done is perhaps delivered again: %r", error)

    def _report(self) -> None:
        """Wake Celery's thread: no other may acknowledge."""
        if not self._stopping.is_set() and not self._reported.is_set():
            self._reported.set()
            self._consumer.hub.call_soon(self._turn)

    def _turn(self, patience_s: float = 0.0) -> None:
        """Do what is to be done in Celery's thread."""
        metrics.HEARTBEAT.set_to_current_time()
        self._consumption.turns()
        self._reported.clear()  # first: what ends from here on is reported anew
        for note in self._threads.notes(patience_s):
            note()
        self._consumer.acknowledge()

    def _hold(self) -> None:
        """Keep what is in hand from being delivered again, and notice that none is taken."""
        while not self._stopped.wait(self._hold_s):
            try:
                self._deliveries.stay_alive()
                adopt(self._redis, self._settings.index_name)
                held = self._consumer.held()
                self._lanes.keep_hold([each.delivery_tag for each in held])
                waiting = sum(
                    each.ready
                    for lane, each in self._lanes.backlogs().items()
                    if self._consumer.takes(lane)
                )
            except RedisError as error:
                log.warning("the broker does not answer: %s", error)
                self._consumption.goes_on()
                self._consumption.turns()
            else:
                if not self._stopping.is_set():
                    self._consumption.look(waiting, len(held))
