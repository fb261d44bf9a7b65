"""Messages that an earlier release left: its keys were ``live``, ``backfill`` and ``unacked``.

Since keys begin with the index's name nobody takes messages from there. During an update workers
and intakes of both releases run beside each other, so one looks there again and again.
"""

import json
from itertools import chain

from redis import Redis

from audiofuse.workers.queue.lanes import SENT, UNACKED, UNACKED_INDEX, key_prefix, lists_of
from audiofuse.workers.telemetry.names import Lane

# Each moves a message only if it is still there: others may be moving, too. KEYS: from where and
# to where. ARGV: the message, and its delivery tag.
FROM_LIST = """
if redis.call('LREM', KEYS[1], -1, ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[1])
return 1
"""
FROM_HELD = """
if redis.call('HDEL', KEYS[1], ARGV[2]) == 0 then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[1])
return 1
"""


def adopt(redis: Redis, index_name: str) -> int:
    """Move what is ours and waits there, or is held, into the lanes; return how much it was.

    What another application keeps under these names stays. A message that a worker of the earlier
    release has in hand is worked on twice, which does no harm.
    """
    prefix, moved = key_prefix(index_name), 0
    for name in chain.from_iterable(map(lists_of, Lane)):
        for message in reversed(redis.lrange(name, 0, -1)):  # the oldest first
            if _is_ours(message):
                moved += int(redis.eval(FROM_LIST, 2, name, prefix + name, message))
    for tag, held in redis.hscan_iter(UNACKED):
        message, lane = _read_held(held)
        if _is_ours(message):
            moved += int(redis.eval(FROM_HELD, 2, UNACKED, prefix + lane, message, tag))
            redis.zrem(UNACKED_INDEX, tag)
    return moved


def _read_held(held: str) -> tuple[str, str]:
    """Return a held message and its lane; nothing if it was written by somebody else."""
    try:
        message, _, lane = json.loads(held)
        return json.dumps(message), Lane(lane)
    except (ValueError, TypeError):
        return "", ""


def _is_ours(message: str | bytes) -> bool:
    try:
        return SENT in json.loads(message)["headers"]
    except (ValueError, TypeError, LookupError):
        return False
