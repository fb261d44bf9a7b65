"""The one loop that does something again and again, ever more seldom, until it succeeds."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class BackOff:
    """How long to wait, in seconds, before the second try, and before any later one at most.

    The wait doubles with each try. A longer one spares what is away, and notices later that it is
    back.
    """

    first_s: float
    most_s: float


def retry(
    work: Callable[[], T],
    away: tuple[type[Exception], ...],
    back_off: BackOff,
    tell: Callable[[Exception, float], object],
    wait: Callable[[float], object] = time.sleep,
) -> T:
    """Return what ``work`` returns, once it raises none of the errors in ``away``.

    ``tell`` is told each error and the seconds until the next try, which ``wait`` waits. Every
    other error is raised.
    """
    pause_s = back_off.first_s
    while True:
        try:
            return work()
        except away as error:
            tell(error, pause_s)
            wait(pause_s)
            pause_s = min(2 * pause_s, back_off.most_s)


def warn(log: logging.Logger, what: str) -> Callable[[Exception, float], None]:
    """Return what logs each error as a warning: what waits, for how long, and for which error."""

    def tell(error: Exception, pause_s: float) -> None:
        log.warning("%s; again in %.0f s: %s", what, pause_s, error)

    return tell
