"""How messages leave the queue: kombu's Redis transport, with a pop that a crash cannot split.

kombu pops a message (BRPOP) and then writes down that it is held. A worker that is killed between
the two loses the message, and with a full prefetch one popped message always waits there. Here one
script (``pop.lua``) does both, for several messages at once. While nothing is there to pop, a
BLMOVE waits that moves a message to where it was. What is finished at the same time is
acknowledged in one go, by who says that it will (``consumer.py``).

All clocks are the server's. What is no message of ours goes to a list of its own. While the server
refuses (a fail-over, full memory, a permission) it is asked again later, on a new connection.

What of kombu is overridden, and from which release of it, is in
``tests/workers/queue/test_kombu.py``, which fails when kombu changes it.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from enum import Enum
from importlib.resources import files
from time import monotonic
from typing import Any

from kombu.transport import redis, virtual
from kombu.transport.virtual.base import Empty
from kombu.utils.encoding import bytes_to_str
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as NotWritableError

from audiofuse.workers.queue.lanes import BROKEN, SENT, SYNC_TASK, held_key
from audiofuse.workers.telemetry.names import Lane

log = logging.getLogger(__name__)

MESSAGES_AT_ONCE = 16
"""Messages that one pop takes at most. Higher: fewer round trips when messages are short work;
lower: the server is free for others sooner."""
BROKEN_KEPT = 10_000
"""Broken messages that are kept, the newest. Higher: more of a misdirected sender's messages can
be recovered; lower: less of the server's memory is at stake."""
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 30.0
"""Seconds before a server that refused is asked again, doubled each time up to the second."""

POP = files("audiofuse.workers.queue").joinpath("pop.lua").read_text()
NOT_LET_IN = "the broker lets nobody in by the user and password of AUDIOFUSE_BROKER_URL"
NOBODY = "nobody"  # a tag that no message has
LANES = frozenset(Lane)


class Request(Enum):
    """What a channel has asked the server and not read the answer of."""

    POP = "pop"
    WAIT = "wait"


class QoS(redis.QoS):  # type: ignore[misc]
    """What is held. The pop has written it down already."""

    gathers = False  # whether somebody calls ``acknowledge``; if not, each message goes at once

    def __init__(self, *args: Any, **options: Any) -> None:
        """Hold nothing."""
        super().__init__(*args, **options)
        self._finished: list[str] = []  # tags: in nobody's hand, but the server does not know yet

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note that a message is held."""
        if self.channel.takes_lanes:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def held(self) -> list[Any]:
        """Return the messages that are in hand; any thread may ask."""
        return [
            message for tag, message in self._delivered.copy().items() if tag not in self._dirty
        ]

    def take_over(self, lost: "QoS", messages: Iterable[Any]) -> None:
        """Hold what is still worked on of a connection that was lost, and acknowledge it here."""
        self._finished += lost._finished  # noqa: SLF001 - another of this class
        for message in messages:
            message.channel = self.channel
            virtual.QoS.append(self, message, message.delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Hand back what is held; once the connection is lost it comes back by itself, later.

        Kombu closes a lost connection more than once, and would end the worker the second time.
        """
        if self.channel.connection.client is not None:
            self.acknowledge()
            super().restore_unacked(client)
        self._delivered.clear()

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message: at once, or together with others."""
        if self.gathers:
            self._finished.append(delivery_tag)
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu's
        """Hand a message back, or acknowledge it."""
        if requeue:
            super().reject(delivery_tag, requeue=True)
        else:
            self.ack(delivery_tag)

    def acknowledge(self) -> None:
        """Acknowledge in one go what was gathered; what fails is tried again with the next."""
        if self._finished:
            with self.pipe_or_acquire() as pipe:
                self._forget(pipe, *self._finished).execute()
            self._finished = []

    def set_aside(self, delivery_tag: str, message: bytes) -> None:
        """Move a message that is held, and is none of ours, to the broken ones."""
        with self.pipe_or_acquire() as pipe:
            pipe.lpush(BROKEN, message)
            self._forget(pipe, delivery_tag).execute()

    def restore_visible(self, start: int = 0, num: int | None = 10, interval: int = 10) -> None:
        """Hand out again what nobody has kept hold of for too long, by the server's clock."""
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        with self.channel.conn_or_acquire() as client:
            try:
                seconds, _ = client.time()
                with redis.Mutex(client, self.unacked_mutex_key, self.unacked_mutex_expire):
                    lost = client.zrange(
                        self.unacked_index_key, seconds - self.visibility_timeout, 0,
                        desc=True, byscore=True, offset=num and start, num=num,
                    )  # fmt: skip
                    for tag in lost:
                        self.restore_by_tag(tag, client)
            except redis.MutexHeld:
                pass  # another worker does it
            except self.channel.ResponseError as error:
                log.warning("what was lost is not handed out again now: %s", error)

    def _remove_from_indices(self, delivery_tag: str, pipe: Any = None) -> Any:
        with self.pipe_or_acquire(pipe) as commands:
            return self._forget(commands, delivery_tag)

    def _forget(self, pipe: Any, *delivery_tags: str) -> Any:
        """Have a pipeline forget that messages are held."""
        pipe.zrem(self.unacked_index_key, *delivery_tags)
        for lane in Lane:
            pipe.zrem(held_key(lane), *delivery_tags)
        pipe.hdel(self.unacked_key, *delivery_tags)
        return pipe


class Channel(redis.Channel):  # type: ignore[misc]
    """Pops messages of the lanes and holds them in one step.

    Queues of others, such as those of the answers to remote control, are kombu's own affair.
    """

    QoS = QoS

    _own: Any = None  # the client of the pool, once it was needed
    _request: Request | None = None  # that is not answered yet
    _lanes_are_empty = False  # as far as the last pop could tell
    _asked: Sequence[str] = ()  # the queue of each list that was asked, in that order
    _pause_s = 0.0  # how long the server is left alone since it refused; 0: it did not
    _not_before = 0.0  # when it may be asked again, on the monotonic clock

    def __init__(self, *args: Any, **options: Any) -> None:
        """Connect; a server that takes no writes is none, so that whoever connects tries again."""
        try:
            super().__init__(*args, **options)
        except AuthenticationError as error:
            raise NotWritableError(f"{NOT_LET_IN}: {error}") from error
        try:
            self.client.zadd(self.unacked_index_key, {NOBODY: 0}, xx=True)  # changes nothing
        except self.ResponseError as error:
            self.close()
            raise NotWritableError(f"the broker takes no messages: {error}") from error

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's
        """Return the client of the pool: kombu makes one for each command, which costs more."""
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._own is None or self._own.connection_pool is not self.pool:
            self._own = super()._create_client()
        return self._own

    @property
    def takes_lanes(self) -> bool:
        """Whether it is the lanes that this channel consumes."""
        return LANES.issuperset(self.active_queues)

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for messages without waiting for the answer."""
        if not self.takes_lanes:
            super()._brpop_start(timeout)
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues or monotonic() < self._not_before:
            return
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        if self._lanes_are_empty:
            self._wait(queues, timeout or self.brpop_timeout)
        else:
            self._pop(queues)

    def _wait(self, queues: Sequence[str], seconds: float) -> None:
        """Ask to be told of a live message; whatever else came meanwhile is found after that."""
        self._request = Request.WAIT
        first = self.global_keyprefix + (Lane.LIVE if Lane.LIVE in queues else queues[0])
        self.client.connection.send_command("BLMOVE", first, first, "RIGHT", "RIGHT", seconds)

    def _pop(self, queues: Sequence[str]) -> None:
        """Ask for as many messages as there is room for: of the first lane, the urgent first."""
        self._request = Request.POP
        self._asked = [queue for queue in queues for _ in self.priority_steps]
        lists = [self._q_for_pri(queue, step) for queue in queues for step in self.priority_steps]
        names = [self.unacked_key, self.unacked_index_key, BROKEN]
        for queue, name in zip(self._asked, lists, strict=True):
            names += [name, held_key(queue)]
        keys = [self.global_keyprefix + name for name in names]
        room = self.qos.can_consume_max_estimate() or 1
        at_most = min(room, MESSAGES_AT_ONCE)
        self.client.connection.send_command(
            "EVAL", POP, len(keys), *keys, at_most, BROKEN_KEPT, SENT, SYNC_TASK
        )

    def _brpop_read(self, **options: Any) -> bool:
        """Read the answer; deliver the messages, or raise ``Empty``."""
        request, self._request = self._request, None
        if request is None:
            return bool(super()._brpop_read(**options))
        try:
            answer = self._answer(**options)
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()  # nothing is under way on this connection: it may be now
        self._lanes_are_empty = request is Request.POP and not answer
        if request is Request.WAIT or not answer:
            raise Empty
        number, broken, messages = answer
        queue = self._asked[number - 1]
        if broken:
            log.warning("%d messages in %s are none of ours: set aside, see status", broken, queue)
        self._queue_cycle.rotate(queue)
        for tag, message in messages:
            self._deliver(bytes_to_str(tag), message, queue)
        return True

    def _deliver(self, tag: str, raw: bytes, queue: str) -> None:
        """Deliver a message that is held, unless kombu can make nothing of it."""
        try:
            message = json.loads(raw)
            errors: list[Any] = self.Message(message, channel=self).errors
        except Exception as error:  # noqa: BLE001 - whatever it is that somebody else wrote
            errors = [error]
        if errors:
            log.warning("a message in %s is none of ours: set aside, %r", queue, errors)
            self.qos.set_aside(tag, raw)
            return
        self.connection._deliver(message, queue)  # noqa: SLF001 - as kombu does

    def _answer(self, **options: Any) -> Any:
        """Read an answer; nothing, and a pause, if the server refused."""
        try:
            answer = self.client.parse_response(self.client.connection, "EVAL", **options)
        except self.connection_errors:
            self.client.connection.disconnect()  # then the next turn connects anew
            raise
        except self.ResponseError as error:
            self._leave_alone(error)
            raise Empty from error
        if self._pause_s:
            log.info("the broker hands out messages again")
            self._pause_s = 0.0
        return answer

    def _receive_one(self, c: Any) -> Any:
        """Read what remote control and others' events have sent; one that is lost is lost.

        Of itself redis-py connects anew while it reads, and then waits for something to be sent: in
        Celery's thread, which takes no messages meanwhile.
        """
        try:
            if not c.connection.can_read(timeout=0):
                raise Empty
        except self.connection_errors:
            self._in_listen = None
            raise
        return super()._receive_one(c)

    def _leave_alone(self, error: Exception) -> None:
        """Pause; then ask on new connections, since after a fail-over another server answers.

        What is in hand is worked on meanwhile, and acknowledged if the server lets it be.
        """
        if not self._pause_s:
            log.warning("the broker hands out no messages until this is mended: %s", error)
        self._pause_s = min(2 * self._pause_s or FIRST_PAUSE_S, MAX_PAUSE_S)
        self._not_before = monotonic() + self._pause_s
        self.client.connection.disconnect()
        self.pool.disconnect()


class Transport(redis.Transport):  # type: ignore[misc]
    """Redis or Valkey, without a moment at which a message is nowhere."""

    Channel = Channel
