"""How messages leave the queue: kombu's Redis transport, with a pop that a crash cannot split.

kombu pops a message (BRPOP) and then writes down that it is held. A worker that is killed between
the two loses the message, and with a full prefetch one popped message always waits there. Here one
script does both, for several messages at once; while nothing is there to pop a BLMOVE waits that
moves a message to where it was. What is finished at the same time is acknowledged in one go.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from time import monotonic, time
from typing import Any

from kombu.transport import redis, virtual
from kombu.transport.virtual.base import Empty
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from audiofuse.workers.telemetry.names import Lane

MESSAGES_AT_ONCE = 16

# KEYS: the queues in order, then kombu's hash and index of what is held. ARGV: the time, and how
# many messages there may be. Answers with one queue's name and its messages.
POP = """
for number = 1, #KEYS - 2 do
  local messages = redis.call('RPOP', KEYS[number], ARGV[2])
  if messages then
    for _, message in ipairs(messages) do
      local properties = cjson.decode(message).properties
      local info = properties.delivery_info
      local held = '[' .. message .. ',' .. cjson.encode(info.exchange) .. ','
        .. cjson.encode(info.routing_key) .. ']'
      redis.call('HSET', KEYS[#KEYS - 1], properties.delivery_tag, held)
      redis.call('ZADD', KEYS[#KEYS], ARGV[1], properties.delivery_tag)
    end
    return {KEYS[number], messages}
  end
end
"""


class QoS(redis.QoS):  # type: ignore[misc]
    """What is held; the broker knows it already."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note that a message is held."""
        virtual.QoS.append(self, message, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Hand back what is held; once the connection is lost it comes back by itself, later.

        Kombu closes a lost connection more than once, and would end the worker the second time.
        """
        if self.channel.connection.client is not None:
            super().restore_unacked(client)
        self._delivered.clear()

    def ack_all(self, delivery_tags: Sequence[str]) -> None:
        """Acknowledge many messages in one go."""
        try:
            with self.pipe_or_acquire() as pipe:
                pipe.zrem(self.unacked_index_key, *delivery_tags)
                pipe.hdel(self.unacked_key, *delivery_tags)
                pipe.execute()
        finally:  # in nobody's hand any more, whatever the broker knows: others may come
            for tag in delivery_tags:
                virtual.QoS.ack(self, tag)


class Channel(redis.Channel):  # type: ignore[misc]
    """Pops messages and holds them in one step."""

    QoS = QoS
    _waits = False  # the last pop found nothing

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for a message without waiting for the answer."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        self._in_poll = connection = self.client.connection
        self._brpop_sent_at = monotonic()
        if self._waits:  # for a live message; backfill has its turn after that time
            first = Lane.LIVE.value if Lane.LIVE in queues else queues[0]
            wait_s = timeout or self.brpop_timeout
            connection.send_command("BLMOVE", first, first, "RIGHT", "RIGHT", wait_s)
        else:
            keys = [*queues, self.unacked_key, self.unacked_index_key]
            room = self.qos.can_consume_max_estimate() or 1
            at_most = min(room, MESSAGES_AT_ONCE)
            connection.send_command("EVAL", POP, len(keys), *keys, time(), at_most)

    def _brpop_read(self, **options: Any) -> bool:
        """Read the answer; deliver the messages, or raise ``Empty``."""
        try:
            try:
                answer = self.client.parse_response(self.client.connection, "EVAL", **options)
            except self.connection_errors:
                self.client.connection.disconnect()  # then the next turn connects anew
                raise
            popped, self._waits = not self._waits, not self._waits and not answer
            if not popped or not answer:
                raise Empty
            queue = bytes_to_str(answer[0])
            self._queue_cycle.rotate(queue)
            for message in answer[1]:
                self.connection._deliver(loads(bytes_to_str(message)), queue)  # noqa: SLF001 - as kombu does
            return True
        finally:
            self._in_poll = None


class Transport(redis.Transport):  # type: ignore[misc]
    """Redis or Valkey, without a moment at which a message is nowhere."""

    Channel = Channel


def acknowledge(messages: Iterable[Any]) -> None:
    """Acknowledge messages, those of one channel in one go."""
    tags: dict[Channel, list[str]] = defaultdict(list)
    for message in messages:
        tags[message.channel].append(message.delivery_tag)
    for channel, finished in tags.items():
        channel.qos.ack_all(finished)
