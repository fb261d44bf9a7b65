"""How every process logs: one line each, to standard error, libraries only when they warn."""

import logging
import sys


def configure_logging(level: str) -> None:
    """Log our own messages from ``level`` on, everybody else's from WARNING on."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    for name in ("core", "workers"):
        logging.getLogger(name).setLevel(level)
