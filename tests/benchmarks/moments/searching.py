"""What moments cost a search: ``make bench-moments``.

One embedded index, a process of its own, has the same number of items twice: alone, and with the
moments of hour-long recordings among them. Two query services, one for each, are asked in turns by
the same sentences, with the shipped encoder; vectors are random, of the real widths.
"""

import argparse
import secrets
import tempfile
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from qdrant_client import models
from query import BATCH, Ask, asking, compare, point, process
from rich.console import Console
from rich.progress import track

from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.bundles.loading import load_encoder
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.starting import DEFAULT_NAME, default_card, default_encoder
from audiofuse.core.index.engine import Engine
from audiofuse.core.index.index import AUDIO, ITEM, Generation, Index, Point, connect
from audiofuse.core.items import moment_id
from audiofuse.core.settings import Settings
from audiofuse.workers.deployment.local import free_port

OF_EACH = 720  # windows of five seconds of an hour
WINDOW_S = 5.0


def fill(
    engine: Engine, generation: Generation, encoder: Encoder, items: int, moments: int
) -> None:
    """Write items, the first of them recordings that share the moments."""
    random, recordings = np.random.default_rng(0), []
    for first in track(range(0, items, BATCH), "items", console=Console(stderr=True)):
        points = [point(random, encoder, number) for number in range(first, first + BATCH)]
        for number, each in enumerate(points, first):
            if number * OF_EACH < moments:
                named = {"moments": OF_EACH, "moments_state": "s", "duration_s": 3600.0}
                points[number - first] = replace(each, payload=dict(each.payload) | named)
                recordings.append(points[number - first])
        _write(engine, generation, points)
    for item in track(recordings, "moments", console=Console(stderr=True)):
        windows = [point(random, encoder, number) for number in range(OF_EACH)]
        _write(
            engine,
            generation.moments,
            [
                replace(
                    each,
                    id=moment_id(item.id, number),
                    payload={
                        "item": item.id, "number": number, "state": "s", "item_norm": 1.3,
                        "start_s": WINDOW_S * number, "end_s": WINDOW_S * (number + 1),
                        "key": item.payload["key"], "bucket": item.payload["bucket"],
                        "keywords": item.payload["keywords"], "labels": item.payload["labels"],
                    },
                )
                for number, each in enumerate(windows)
            ],
        )  # fmt: skip


def _write(engine: Engine, generation: Generation, points: list[Point]) -> None:
    """Write as the index's own process does, which over HTTP takes some minutes more."""
    engine.upsert(
        generation.collection,
        [
            models.PointStruct(
                id=each.id, vector={ITEM: each.item, AUDIO: each.audio}, payload=dict(each.payload)
            )
            for each in points
        ],
    )  # fmt: skip


def main() -> None:
    """Fill one index twice, and ask both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--moments", type=int, default=200_000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1])
    parser.add_argument("--questions", type=int, default=100, help="in each turn")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="audiofuse-")))
        bundle = save_bundle(default_encoder(), home, DEFAULT_NAME, default_card())
        port, key = free_port(), secrets.token_hex()
        settings = {
            "home": str(home), "encoder": str(bundle), "qdrant_api_key": key,
            "qdrant_url": f"http://127.0.0.1:{port}",
        }  # fmt: skip
        command = ["-m", "audiofuse", "serve-index", "--port", str(port)]
        index = partial(process, command, settings, f"{settings['qdrant_url']}/readyz")
        encoder, version = load_encoder(Settings(**settings))
        counts = {"items": 0, "moments": options.moments}
        with index(), closing(connect(settings["qdrant_url"], key)) as client:
            made = {name: Index(client, name).create(version, encoder) for name in counts}
        with closing(Engine(home / "index")) as engine:
            for name, count in counts.items():
                fill(engine, made[name], encoder, options.items, count)
        stack.enter_context(index())
        ways: dict[str, Ask] = {}
        for name, count in counts.items():
            url = f"http://127.0.0.1:{(port := free_port())}"
            command = ["-m", "audiofuse", "serve", "--port", str(port)]
            own = settings | {"index_name": name}
            stack.enter_context(process(command, own, f"{url}/readyz"))
            ways[f"{options.items} items, {count} moments"] = asking(url, max(options.clients))
        for clients in options.clients:
            compare(f"{clients} clients", ways, clients, options.questions, options.turns)


if __name__ == "__main__":
    main()
