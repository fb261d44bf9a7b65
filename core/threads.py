"""Threads without which a process must not look alive."""

import logging
import os
import threading
from collections.abc import Callable
from typing import NoReturn

log = logging.getLogger(__name__)

BROKEN = 70  # exit code for an internal error: EX_SOFTWARE


def vital_thread(name: str, run: Callable[[], None]) -> threading.Thread:
    """Start a thread without which nothing here can go on: if it dies the process does.

    A worker that has lost a stage must not look alive. What it holds is delivered again.
    """

    def run_or_end() -> None:
        try:
            run()
        except BaseException:
            log.critical("the thread %s died, and the worker with it", name, exc_info=True)
            end_process()

    thread = threading.Thread(target=run_or_end, name=name, daemon=True)
    thread.start()
    return thread


def end_process() -> NoReturn:
    """End at once, with an exit code that says that this was no orderly end."""
    logging.shutdown()
    os._exit(BROKEN)
