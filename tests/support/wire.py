"""A server that speaks S3 as a test tells it, byte by byte."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from audiofuse.core.settings import Settings

Say = Callable[[bytes], bytes | None]  # from a request to its answer; none: the connection ends


class Wire:
    """A server that shows what it was sent, and answers byte by byte as it is told."""

    def __init__(self, say: Say) -> None:
        """Run it."""
        self.say = say
        self.hangs_up = False  # after each answer, without a word
        self.requests: list[bytes] = []
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file, suppress(OSError):
            request = b""
            for line in file:
                request += line
                if line == b"\r\n":
                    self.requests.append(request)
                    answer = self.say(request)
                    if answer is None:
                        return
                    connection.sendall(answer)
                    request = b""
                    if self.hangs_up:
                        return

    def close(self) -> None:
        """End it, and every connection to it."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for each in self._open:
            each.close()

    @property
    def settings(self) -> Settings:
        """Return settings for a bucket on it."""
        return Settings(
            bucket="s3://sounds", s3_endpoint_url=self.url, s3_access_key_id="a",
            s3_secret_access_key="b",
        )  # fmt: skip
