"""The device process: lends its encoders to the message processes of this host."""

import logging
import socket
import threading
from functools import partial

from audiofuse.core.settings import Settings
from audiofuse.core.threads import vital_thread
from audiofuse.workers.indexing.device.connection import Connection
from audiofuse.workers.indexing.device.encoders import Encoders

log = logging.getLogger(__name__)


class Server:
    """Serves message processes; which of them asks makes no difference to a batch."""

    def __init__(self, settings: Settings) -> None:
        """Begin with nobody, and nothing loaded."""
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self.encoders = Encoders(settings, self._working)

    def serve(self, listening: socket.socket) -> None:
        """Serve whoever connects, until that raises."""
        try:
            while True:
                accepted, _ = listening.accept()
                connection = Connection(accepted, self.encoders)
                with self._lock:
                    self._connections.add(connection)
                vital_thread("asks", partial(connection.run, self._ended))
        finally:
            log.info("the device stops; %s", self.encoders)

    def _working(self) -> int:
        with self._lock:
            return sum(connection.working for connection in self._connections)

    def _ended(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)
