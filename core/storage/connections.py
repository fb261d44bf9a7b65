"""Kept-alive HTTP/1.1, as much of it as asking S3 for objects takes.

An ``http.client`` spends half its time on headers, which it parses as an e-mail's. Whatever is out
of the ordinary is not interpreted here: it raises ``Unanswered``, and the connection is closed.
"""

import socket
import ssl
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader

CONNECT_S = 5.0  # to connect, and for the handshake
READ_S = 60.0  # between two bytes of an answer
# A connection that was idle for longer is not used again: servers, and firewalls without a word,
# close it. Lowered, there are more handshakes.
IDLE_S = 15.0
MAX_LINE = 64 * 1024  # bytes of a line of the head
MAX_HEADERS = 200
PIECE = 256 * 1024  # bytes of a body that are in memory at once
NO_BODY = (204, 304)
HEXADECIMAL = b"0123456789abcdefABCDEF"


class Unanswered(Exception):  # noqa: N818 - the caller asks in another way: nothing has failed yet
    """There is no answer of the expected kind."""

    refuses = False  # whether the same would come of the next request


class Refuses(Unanswered):
    """The server, or what it takes for one of ours, would not have it this way."""

    refuses = True


class _Stale(Unanswered):
    """A connection was closed before it answered, as one that was idle may be."""


class Answer:
    """Status, headers and body of an answer; the body is read once."""

    def __init__(self, first: bytes, file: BufferedReader, *, has_body: bool) -> None:
        """Read the head that begins with the line ``first``."""
        version, _, rest = first.partition(b" ")
        code = rest[:3]
        if version not in {b"HTTP/1.1", b"HTTP/1.0"} or not (len(code) == 3 and code.isdigit()):  # noqa: PLR2004 - digits of a status
            raise Refuses(f"it does not answer in HTTP/1: {first[:80]!r}")
        self._file = file
        self.status = int(code)
        self.headers = _headers(file)
        self._size = self._size_of_body() if has_body and self.status not in NO_BODY else 0
        said = self.headers.get("connection", "").lower()
        self._goes_on = version == b"HTTP/1.1" and "close" not in said
        self._is_read = self._size == 0

    @property
    def leaves_connection(self) -> bool:
        """Whether another request may follow on the same connection."""
        return self._is_read and self._goes_on

    def pieces(self) -> Iterator[memoryview]:
        """Yield the body piece by piece; each is overwritten by the next.

        Raises ``Unanswered`` where it breaks off.
        """
        buffer = memoryview(bytearray(PIECE if self._size is None else min(PIECE, self._size)))
        for size in self._runs():
            left = size
            while left:
                count = self._read_into(buffer[:left])
                left -= count
                yield buffer[:count]
        self._is_read = True

    def body(self, most: int) -> bytes:
        """Return the whole body, which has at most so many bytes, else it is no answer."""
        whole = bytearray()
        for piece in self.pieces():
            whole += piece
            if len(whole) > most:
                raise Unanswered(f"an answer of more than {most} bytes")
        return bytes(whole)

    def _size_of_body(self) -> int | None:
        """Return the length that was announced; ``None`` for one that comes in chunks."""
        length, coding = (self.headers.get(x) for x in ("content-length", "transfer-encoding"))
        if coding is None and length is not None and length.isdecimal():
            return int(length)
        if coding is not None and coding.lower() == "chunked" and length is None:
            return None
        raise Refuses(f"a body of unknown length: {length}, {coding}")

    def _runs(self) -> Iterator[int]:
        """Yield how many bytes of the body come in a row."""
        if self._size is not None:
            yield self._size
            return
        while size := _hexadecimal(_line(self._file)):
            yield size
            if _line(self._file):
                raise Unanswered("a chunk is longer than it says")
        _headers(self._file)  # after the last chunk

    def _read_into(self, buffer: memoryview) -> int:
        try:
            count = self._file.readinto(buffer)
        except OSError as error:
            raise Unanswered(f"the answer broke off: {error}") from error
        if not count:
            raise Unanswered("the answer broke off: the connection was closed")
        return count


class _Connection:
    """One connection; used by one thread at a time."""

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext | None) -> None:
        try:
            self._socket = socket.create_connection(address, CONNECT_S)
        except OSError as error:
            raise Unanswered(f"cannot connect to {address[0]}:{address[1]}: {error}") from error
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls:
                self._socket = tls.wrap_socket(self._socket, server_hostname=address[0])
            self._socket.settimeout(READ_S)
        except OSError as error:
            self._socket.close()
            kind = Refuses if isinstance(error, ssl.SSLError) else Unanswered
            raise kind(f"no TLS with {address[0]}:{address[1]}: {error}") from error
        self._file = self._socket.makefile("rb")
        self.is_new = True
        self.used = 0.0  # when it was given back last, on the monotonic clock

    def ask(self, request: bytes, *, has_body: bool) -> Answer:
        try:
            self._socket.sendall(request)
            first = self._file.readline(MAX_LINE)
        except TimeoutError as error:
            raise Unanswered(f"no answer in {READ_S:.0f} s") from error
        except OSError as error:
            raise _Stale(f"the connection broke: {error}") from error
        if not first:
            raise _Stale("the connection was closed")
        return Answer(first, self._file, has_body=has_body)

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Connections:
    """Connections to one server; as many are kept as threads have asked at once."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Connect to nothing yet."""
        self._address = host, port
        self._tls = tls
        self._idle: list[_Connection] = []  # the last one used comes first
        weakref.finalize(self, _close, self._idle)

    @contextmanager
    def ask(self, request: bytes, *, has_body: bool) -> Iterator[Answer]:
        """Send a request that changes nothing and lend its answer.

        Raises ``Unanswered``. What a connection that was idle does not answer is asked once more.
        """
        connection = self._take()
        try:
            try:
                answer = connection.ask(request, has_body=has_body)
            except _Stale:
                if connection.is_new:
                    raise
                connection.close()
                connection = _Connection(self._address, self._tls)
                answer = connection.ask(request, has_body=has_body)
            yield answer
        except BaseException:
            connection.close()
            raise
        if answer.leaves_connection:
            connection.is_new, connection.used = False, time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    def _take(self) -> _Connection:
        try:
            connection = self._idle.pop()
        except IndexError:
            return _Connection(self._address, self._tls)
        if time.monotonic() - connection.used < IDLE_S:
            return connection
        connection.close()
        _close(self._idle)  # which were idle for longer still
        return _Connection(self._address, self._tls)


def _close(connections: list[_Connection]) -> None:
    while connections:
        connections.pop().close()


def _line(file: BufferedReader) -> bytes:
    """Read a line of the head, or of what is between chunks, without its end."""
    try:
        line = file.readline(MAX_LINE)
    except OSError as error:
        raise Unanswered(f"the answer broke off: {error}") from error
    if line[-2:] != b"\r\n":
        raise Unanswered(f"no line of HTTP/1: {line[:80]!r}")
    return line[:-2]


def _headers(file: BufferedReader) -> dict[str, str]:
    """Read headers up to the empty line, by their names in lower case; of one name, joined."""
    headers: dict[str, str] = {}
    for _ in range(MAX_HEADERS):
        line = _line(file).decode("latin-1")
        if not line:
            return headers
        before, colon, value = line.partition(":")
        name = before.lower()
        if not colon or name != name.strip() or "\r" in value:
            raise Refuses(f"no header of HTTP/1: {line[:80]!r}")
        value = value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    raise Refuses(f"more than {MAX_HEADERS} headers")


def _hexadecimal(line: bytes) -> int:
    """Return the size of a chunk; what follows a semicolon is for somebody else."""
    digits = line.partition(b";")[0].strip()
    if not digits or digits.strip(HEXADECIMAL):
        raise Unanswered(f"no size of a chunk: {line[:80]!r}")
    return int(digits, 16)
