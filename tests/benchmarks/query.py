"""What a question costs beyond its two bare parts: ``make bench-query``.

Asked in turns, on one index that is a process of its own, embedded or the server that
AUDIOFUSE_QDRANT_URL names, with the shipped encoder and points of its real shape:

PyTorch     the query encoder by PyTorch in this process, and one query of qdrant-client's
bare        the same with the encoder as the service runs it
service     GET /v1/search of a running ``audiofuse serve``
unbatched   the same service, which reads and asks for each question alone

``--clients 50`` threads ask each of them. Ratios are to PyTorch. Afterwards texts alone are read.
"""

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from uuid import uuid4

import httpx
import numpy as np
from qdrant_client import QdrantClient
from rich.console import Console
from rich.progress import track
from rich.table import Table

import audiofuse.core.index.index
from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.bundles.loading import load_encoder
from audiofuse.core.encoder.embeddings import unit
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.inference import prepare, use_cpus
from audiofuse.core.encoder.starting import DEFAULT_NAME, default_card, default_encoder
from audiofuse.core.index.index import ITEM, Generation, Index, Point, connect
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.workers.deployment.local import free_port

BATCH = 500
LIMIT = 10
WORDS = (
    "dog", "rain", "bell", "wind", "engine", "child", "water", "bird",
    "door", "music", "crowd", "saw", "train", "cat", "owl", "sea",
)  # fmt: skip
PATIENCE_S = 300  # the embedded engine answers one after the other, however many ask
SERVE = """
import sys
import audiofuse.core.index.index, audiofuse.core.search.answering, audiofuse.core.search.loaded
from audiofuse.workers.commands.main import main

audiofuse.core.index.index.TIMEOUT_S, at_once = int(sys.argv[1]), sys.argv[2]
if at_once == "unbatched":
    audiofuse.core.search.loaded.TEXTS_AT_ONCE = 1
    audiofuse.core.search.answering.QUERIES_AT_ONCE = 1
sys.argv[1:3] = ["serve"]
main()
"""

Ask = Callable[[str], object]


def question(number: int) -> str:
    """Return a sentence; the first thousands differ."""
    a, b, c = (WORDS[number // 16**place % 16] for place in range(3))
    return f"a {a} near a {b} while there is a {c}"


def key_of(number: int) -> str:
    """Return a sound's key, as long as keys are."""
    return f"recordings/2026/{number // 1000:05}/microphone-{number:09}.wav"


def fill(
    index: Index, generation: Generation, encoder: Encoder, count: int,
    named: Callable[[int], str] = key_of,
) -> None:  # fmt: skip
    """Write points as workers would, with random vectors, whose keys are ``named``."""
    random = np.random.default_rng(0)
    batches = range(index.count(generation), count, BATCH)
    for first in track(batches, f"filling up to {count} points", console=Console(stderr=True)):
        numbers = range(first, min(count, first + BATCH))
        index.upsert(generation, [point(random, encoder, n, named(n)) for n in numbers])


def point(random: np.random.Generator, encoder: Encoder, number: int, key: str = "") -> Point:
    """Return an item as a worker would write it, with random vectors."""
    item = random.standard_normal(encoder.dim)
    payload = {
        "bucket": "sounds", "key": key or key_of(number), "etag": f"{number:032x}",
        "sidecar_etag": "",
        "sidecar_problem": "", "user_metadata_hash": "", "modified": 1_790_000_000_000 + number,
        "size": 320_044, "title": f"Recording {number}", "has_text": "yes",
        "description": "A dog barks in a yard while rain falls on a tin roof nearby.",
        "keywords": ["dog", "rain", "yard"], "labels": ["Dog", "Rain"], "extra": {"licence": "CC0"},
        "item_norm": 1.3, "encoder": "bench", "indexed_at": 1_790_000_000_000,
        "duration_s": 5.0, "sample_rate": 32_000, "channels": 1, "content_hash": f"{number:064x}",
    }  # fmt: skip
    audio = np.abs(random.standard_normal(encoder.audio_dim))
    return Point(str(uuid4()), payload, (item / np.linalg.norm(item)).tolist(), audio.tolist())


@contextmanager
def process(command: Sequence[str], settings: dict[str, str], ready: str) -> Iterator[None]:
    """Run Python with ``command`` until the end, from when it is ready."""
    environment = os.environ | {PREFIX + name.upper(): value for name, value in settings.items()}
    with subprocess.Popen([sys.executable, *command], env=environment) as running:
        try:
            while not _answers(ready):
                if running.poll() is not None:
                    sys.exit(f"{command} ended with {running.returncode}")
                time.sleep(0.1)
            yield
        finally:
            running.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


def times(ask: Ask, clients: int, questions: int) -> tuple[list[float], float]:
    """Have so many clients ask in turn; return seconds of each answer, and answers a second."""
    lock, numbers = threading.Lock(), iter(range(questions))

    def client(_: int) -> list[float]:
        took = []
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return took
            started = time.perf_counter()
            ask(question(number))
            took.append(time.perf_counter() - started)

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        found = [seconds for took in threads.map(client, range(clients)) for seconds in took]
    return found, questions / (time.perf_counter() - started)


def bare(encoder: Encoder, client: QdrantClient, generation: Generation) -> Ask:
    """Return what asks with the bare parts, as a program without audiofuse would."""
    reading = threading.Lock()  # a tokenizer serves one thread at a time

    def ask(text: str) -> object:
        with reading:
            vector = unit(encoder.encode_text([text]))[0].tolist()
        return client.query_points(
            generation.collection, vector, using=ITEM, limit=LIMIT, with_payload=True
        )

    return ask


def asking(url: str, clients: int) -> Ask:
    """Return what asks a service."""
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    client = httpx.Client(base_url=url, timeout=PATIENCE_S, limits=limits)

    def ask(text: str) -> object:
        answer = client.get("/v1/search", params={"q": text, "limit": LIMIT})
        return answer.raise_for_status().json()

    return ask


def compare(title: str, ways: dict[str, Ask], clients: int, questions: int, turns: int) -> None:
    """Ask in turns, and print each way's times and what they are times the first way's."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for ask in ways.values():
        times(ask, clients, clients)  # connections, caches
    for _ in range(turns):
        for name, ask in ways.items():
            found, rate = times(ask, clients, questions)
            took[name] += found
            rates[name].append(rate)
    table = Table("", "p50 ms", "x", "p99 ms", "x", "answers/s", "x", title=title)
    figures = {
        name: (1000 * median(own), 1000 * quantiles(own, n=100)[98], median(rates[name]))
        for name, own in took.items()
    }
    first = next(iter(figures.values()))
    for name, own in figures.items():
        pairs = zip(own, first, strict=True)
        table.add_row(name, *(cell for a, b in pairs for cell in (f"{a:.1f}", f"{a / b:.2f}")))
    Console().print(table)


def compare_towers(encoders: dict[str, Encoder], questions: int) -> None:
    """Read texts by each encoder, alone and 16 at once."""
    for size in (1, 16):
        ways: dict[str, Ask] = {
            name: lambda text, each=each, size=size: each.encode_text([text] * size)  # type: ignore[misc]
            for name, each in encoders.items()
        }
        compare(f"{size} texts at once", ways, 1, questions, 3)


def main() -> None:
    """Measure for each size of the index."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[1000, 20_000])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 50])
    parser.add_argument("--questions", type=int, default=200, help="in each turn")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="audiofuse-")))
        bundle = save_bundle(default_encoder(), home, DEFAULT_NAME, default_card())
        given = Settings()
        name = f"bench-{uuid4().hex[:6]}"
        settings = {"home": str(home), "encoder": str(bundle), "index_name": name}
        if "qdrant_url" not in given.model_fields_set:
            port = free_port()
            settings["qdrant_url"] = f"http://127.0.0.1:{port}"
            settings["qdrant_api_key"] = secrets.token_hex()
            ready = f"{settings['qdrant_url']}/readyz"
            command = ["-m", "audiofuse", "serve-index", "--port", str(port)]
            stack.enter_context(process(command, settings, ready))
        measure(stack, Settings(**settings), settings, options)


def measure(
    stack: ExitStack, current: Settings, settings: dict[str, str], options: argparse.Namespace
) -> None:
    """Start the services, then fill and ask."""
    encoder, version = load_encoder(current)
    use_cpus()
    encoders = {"PyTorch": prepare(load_bundle(Path(settings["encoder"]))), "bare": encoder}
    key = current.qdrant_api_key
    audiofuse.core.index.index.TIMEOUT_S = PATIENCE_S
    client = connect(current.qdrant_url, key.get_secret_value() if key else None)
    index = Index(client, current.index_name)
    generation = index.create(version, encoder)
    stack.callback(index.drop, generation)
    urls = {}
    for name in ("service", "unbatched"):
        port = free_port()
        urls[name] = f"http://127.0.0.1:{port}"
        started = ["-c", SERVE, str(PATIENCE_S), name, "--port", str(port)]
        stack.enter_context(process(started, settings, f"{urls[name]}/readyz"))
    for items in options.items:
        fill(index, generation, encoder, items)
        for clients in options.clients:
            ways = {name: bare(each, client, generation) for name, each in encoders.items()}
            ways |= {name: asking(url, clients) for name, url in urls.items()}
            questions = max(options.questions, clients)
            compare(f"{items} items, {clients} clients", ways, clients, questions, options.turns)
    compare_towers(encoders, options.questions)


if __name__ == "__main__":
    main()
