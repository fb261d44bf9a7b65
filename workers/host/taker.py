"""A process that takes messages: python -m audiofuse.workers.host.taker PARENT OPTIONS.

It is Celery's own worker, with ``OPTIONS`` beside ours, which ends with its ``PARENT``.
"""

import sys
from importlib import import_module

from celery.bin.celery import main as celery

from audiofuse.core.children import end_with
from audiofuse.core.memory import importing

APP = "audiofuse.workers.indexing.app"
WORKER = [
    "celery", "--quiet", "-A", APP,
    "worker", "--without-gossip", "--without-mingle",
]  # fmt: skip


def main(parent: int, *options: str) -> None:
    """Be Celery's worker, until SIGTERM."""
    end_with(parent)
    with importing():
        import_module(APP)  # as Celery would
    sys.argv = [*WORKER, *options]
    celery()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
