"""How every process logs: one line each, to standard error, libraries only when they warn.

As text it is a line to read, in which control characters are escaped and what follows an error is
indented: whoever names an object cannot write lines of the log. As JSON it is an object with the
same message, and with what it is about in fields of their own: those of ``FIELDS`` that are
``bound``, or given as ``extra``.
"""

import json
import logging
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from audiofuse.core.settings import Settings

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CANNOT_BE_SHOWN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's classes of characters
FIELDS = ("key", "lane", "version", "outcome", "seconds")

_bound: ContextVar[dict[str, str] | None] = ContextVar("bound", default=None)


@contextmanager
def bound(**fields: str) -> Iterator[None]:
    """Say what the lines of this thread are about, until this ends."""
    token = _bound.set((_bound.get() or {}) | fields)
    try:
        yield
    finally:
        _bound.reset(token)


def bind(**fields: str) -> None:
    """Say more about that, until it ends."""
    about = _bound.get()
    if about is not None:
        about |= fields


class TextFormatter(logging.Formatter):
    """One line to read; a traceback follows it, indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """Return the line."""
        return _printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's own name
        """Return the traceback."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - logging's own name
        """Return the stack."""
        return _indented(super().formatStack(stack_info))


def _printable(text: str) -> str:
    """Escape what ends a line, moves a terminal's cursor or turns the direction of writing."""
    if text.isprintable():  # as nearly every line is, and known a hundred times as fast
        return text
    return "".join(
        repr(each)[1:-1] if unicodedata.category(each) in CANNOT_BE_SHOWN else each for each in text
    )


def _indented(text: str) -> str:
    return "\n".join(f"    {_printable(line)}" for line in text.split("\n"))


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        about = (_bound.get() or {}) | vars(record)
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        } | {name: about[name] for name in FIELDS if name in about}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(settings: Settings) -> None:
    """Log our own messages as the settings say, everybody else's from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    json_wanted = settings.log_format == "json"
    handler.setFormatter(JsonFormatter() if json_wanted else TextFormatter(TEXT))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)
    logging.getLogger("audiofuse").setLevel(settings.log_level)
