"""What asking several deployments costs beside asking one: ``make bench-federation``.

Processes as they run: three members with a third of the points each, one deployment with all of
them, each an ``audiofuse serve`` on an embedded index of its own with the shipped encoder and
points of its real shape; and federations of the three: all well, one that is slow within its
deadline, one that hangs (SIGSTOP), one that is dead (nothing listens there), one amid a rollout
(another version). All are asked in turns, by ``--clients`` threads. Told are the times, how many
answers lacked a member, and how many had the hits of the one deployment, in its order.
"""

import argparse
import asyncio
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from statistics import median, quantiles

import httpx
import numpy as np
from query import asking, point, process, question
from rich.console import Console
from rich.progress import track
from rich.table import Table

from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.bundles.loading import load_encoder
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.starting import DEFAULT_NAME, default_card, default_encoder
from audiofuse.core.index.index import Index, Point, connect
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.workers.deployment.local import free_port

MEMBERS = ("a", "b", "c")
BATCH = 500
SLOW_S = 0.2  # what the slow one takes longer
DEADLINE_S = 1.0
LIMIT = 10


@contextmanager
def deployment(
    home: Path, bundle: Path, points: list[Point]
) -> Iterator[tuple[str, Callable[..., None]]]:
    """Run an index and a service with these points; yield its URL, and what signals it."""
    home.mkdir()
    port, key = free_port(), secrets.token_hex()
    settings = {
        "home": str(home), "encoder": str(bundle), "qdrant_api_key": key,
        "qdrant_url": f"http://127.0.0.1:{port}",
    }  # fmt: skip
    command = ["-m", "audiofuse", "serve-index", "--port", str(port)]
    with process(command, settings, f"{settings['qdrant_url']}/readyz"):
        encoder, version = load_encoder(Settings(**settings))
        with closing(connect(settings["qdrant_url"], key)) as client:
            index = Index(client, "audiofuse")
            generation = index.create(version, encoder)
            for at in track(range(0, len(points), BATCH), home.name, console=Console(stderr=True)):
                index.upsert(generation, points[at : at + BATCH])
        with _served([], settings) as (url, send):
            yield url, send


@contextmanager
def _served(
    options: list[str], settings: dict[str, str]
) -> Iterator[tuple[str, Callable[..., None]]]:
    """Run ``audiofuse serve``; yield its URL, and what signals it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "audiofuse", "serve", "--port", str(port), *options]
    environment = os.environ | {PREFIX + name.upper(): value for name, value in settings.items()}
    running = subprocess.Popen(command, env=environment)
    try:
        while not _ready(url):
            if running.poll() is not None:
                sys.exit(f"{command} ended with {running.returncode}")
            time.sleep(0.1)
        yield url, running.send_signal
    finally:
        running.send_signal(signal.SIGCONT)
        running.terminate()
        running.wait()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).is_success
    except httpx.TransportError:
        return False


@contextmanager
def slowed(url: str) -> Iterator[str]:
    """Yield the URL of what hands everything on to ``url``, ``SLOW_S`` later."""
    host, port = httpx.URL(url).host, httpx.URL(url).port
    loop = asyncio.new_event_loop()

    async def hand_on(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, by_s: float
    ) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(by_s)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, port)
        with suppress(ConnectionError):  # whoever asks may go
            await asyncio.gather(hand_on(reader, back, SLOW_S), hand_on(there, writer, 0))

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def made(encoder: Encoder, count: int) -> list[Point]:
    """Return so many points as workers would write them, with random vectors."""
    random = np.random.default_rng(0)
    return [point(random, encoder, number) for number in range(count)]


def figures(
    urls: dict[str, str],
    clients: int,
    questions: int,
    turns: int,
    around: dict[str, Callable[..., None]],
) -> Table:
    """Ask each in turns; ``around`` is what must be signalled while one of them is asked."""
    took: dict[str, list[float]] = {name: [] for name in urls}
    partial: dict[str, int] = dict.fromkeys(urls, 0)
    same: dict[str, int] = dict.fromkeys(urls, 0)
    for turn in range(turns):
        expected: dict[int, list[str]] = {}
        for name, url in urls.items():
            if name in around:
                around[name](signal.SIGSTOP)
            for number, seconds, told in asked(url, clients, questions, turn * questions):
                ids = [hit["id"] for hit in told["hits"]]
                took[name].append(seconds)
                partial[name] += bool(told.get("partial"))
                same[name] += ids == expected.setdefault(number, ids)
            if name in around:
                around[name](signal.SIGCONT)
                time.sleep(1)
    title = f"{clients} clients, {turns} x {questions} questions"
    table = Table("", "p50 ms", "x", "p99 ms", "x", "without a member", "same hits", title=title)
    first: tuple[float, float] | None = None
    for name, own in took.items():
        p50, p99 = 1000 * median(own), 1000 * quantiles(own, n=100)[98]
        first = first or (p50, p99)
        table.add_row(
            name, f"{p50:.1f}", f"{p50 / first[0]:.2f}", f"{p99:.1f}", f"{p99 / first[1]:.2f}",
            f"{partial[name] / len(own):.1%}", f"{same[name] / len(own):.1%}",
        )  # fmt: skip
    return table


def asked(url: str, clients: int, questions: int, first: int) -> list[tuple[int, float, dict]]:
    """Have so many clients ask in turn; return number, seconds and answer of each question."""
    ask, lock = asking(url, clients), threading.Lock()
    numbers, answers = iter(range(first, first + questions)), []
    ask(question(0))  # connections

    def client() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            started = time.perf_counter()
            told = ask(question(number))
            answers.append((number, time.perf_counter() - started, told))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def main() -> None:
    """Start everything, and ask."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=3000, help="of all members together")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--questions", type=int, default=200, help="in each turn")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="audiofuse-")))
        encoder = default_encoder()
        bundle = save_bundle(encoder, home, DEFAULT_NAME, default_card())
        other = save_bundle(encoder, home, "other", default_card())
        points = made(encoder, options.items)
        run = stack.enter_context
        one, _ = run(deployment(home / "one", bundle, points))
        parts = {
            name: run(deployment(home / name, bundle, points[at :: len(MEMBERS)]))
            for at, name in enumerate(MEMBERS)
        }
        newer, _ = run(deployment(home / "newer", other, points[2 :: len(MEMBERS)]))
        (a, _), (b, _), (c, stop) = parts.values()

        def federation(last: str) -> str:
            ask = [text for each in (a, b, last) for text in ("--ask", each)]
            return run(_served(ask, {"ask_s": str(DEADLINE_S), "home": str(home / "none")}))[0]

        urls = {
            "one deployment": one,
            "three members": federation(c),
            f"one {SLOW_S} s slower": federation(run(slowed(c))),
            "one hangs": federation(c),
            "one is dead": federation(f"http://127.0.0.1:{free_port()}"),
            "one has another version": federation(newer),
        }
        for clients in options.clients:
            around = {"one hangs": stop}
            table = figures(urls, clients, options.questions, options.turns, around)
            Console().print(table)


if __name__ == "__main__":
    main()
