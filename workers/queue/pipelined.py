"""Commands that many threads give Redis at the same time, in one pipeline."""

import threading
from collections.abc import Sequence
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from redis import Redis, RedisError

from audiofuse.core.batcher import Batcher

AT_ONCE = 128
"""Commands that go to Redis together. Higher: fewer round trips when many ask at once."""

Command = tuple[str | bytes | float, ...]


class Pipelined:
    """One client's commands, each atomic by itself; what comes while others are sent goes next."""

    _all: ClassVar[WeakValueDictionary[int, "Pipelined"]] = WeakValueDictionary()  # by id(redis)
    _making: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, redis: Redis) -> None:
        """Send by ``redis``."""
        self._redis = redis
        self._ask = Batcher[Command, Any](self._send, AT_ONCE, away=(RedisError,))

    @classmethod
    def of(cls, redis: Redis) -> "Pipelined":
        """Return the one that all share who use this client."""
        with cls._making:
            return cls._all.setdefault(id(redis), cls(redis))

    def __call__(self, *command: str | bytes | float) -> Any:
        """Return Redis's answer; raises ``RedisError`` while it is away, or refuses any of them."""
        return self._ask(command)

    def _send(self, commands: Sequence[Command]) -> list[Any]:
        with self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            return pipe.execute()
