"""The device process itself: python -m audiofuse.workers.indexing.device PARENT DESCRIPTOR.

``DESCRIPTOR`` is a Unix socket that listens. It belongs to whoever started this, so that those who
connect while it is started anew are served once it is there.
"""

import signal
import socket
import sys

from audiofuse.core.children import end_with
from audiofuse.core.settings import Settings
from audiofuse.core.threads import vital_thread
from audiofuse.workers.indexing.device.server import Server
from audiofuse.workers.telemetry.logs import configure_logging
from audiofuse.workers.telemetry.metrics import Process, serve_metrics


def main(parent: int, descriptor: int) -> None:
    """Serve until SIGTERM, or until the process ``parent`` ends."""
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started it to act on
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    settings = Settings()
    configure_logging(settings)
    serve_metrics(settings, Process.WORKER)
    server = Server(settings)
    vital_thread("watch", server.encoders.watch)
    with socket.socket(fileno=descriptor) as listening:
        server.serve(listening)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
