"""What a key that is limited to folders costs a question: ``make bench-limited``.

One service, one embedded index (or the server that AUDIOFUSE_QDRANT_URL names), points of the
shipped encoder's shape in a hundred folders of equal size. Keys that may see 1, 5 and 20 folders
ask by turns with one that may see all, in one run.
"""

import argparse
import secrets
import tempfile
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import httpx
from query import LIMIT, PATIENCE_S, SERVE, Ask, compare, fill, process

import audiofuse.core.index.index
from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.bundles.loading import load_encoder
from audiofuse.core.encoder.starting import DEFAULT_NAME, default_card, default_encoder
from audiofuse.core.index.index import Index, connect
from audiofuse.core.settings import Settings
from audiofuse.workers.deployment.local import free_port

FOLDERS = 100
LIMITED = (0, 1, 5, 20)  # folders that a key may see, 20 at most; 0: all there is


def key_of(number: int) -> str:
    """Return the key of a sound, in one folder after the other."""
    return f"recordings/site-{number % FOLDERS:02}/2026/microphone-{number:09}.wav"


def scopes(folders: int) -> str:
    """Return what a key of so many folders may do and see, as the setting says it."""
    places = "/+".join(f"recordings/site-{number:02}" for number in range(folders))
    return f"search@{places}/" if folders else "search"


def asking(url: str, key: str) -> Ask:
    """Return what asks a service with a key; hits are told of."""
    headers = {"Authorization": f"Bearer {key}"}
    client = httpx.Client(base_url=url, timeout=PATIENCE_S, headers=headers)

    def ask(text: str) -> object:
        answer = client.get("/v1/search", params={"q": text, "limit": LIMIT}).raise_for_status()
        assert len(answer.json()["hits"]) == LIMIT
        return answer

    return ask


def main() -> None:
    """Fill, ask by turns, print; for each size of the index."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--questions", type=int, default=50, help="in each turn")
    parser.add_argument("--turns", type=int, default=4)
    options = parser.parse_args()
    keys = {folders: secrets.token_hex() for folders in LIMITED}
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="audiofuse-")))
        bundle = save_bundle(default_encoder(), home, DEFAULT_NAME, default_card())
        settings = {
            "home": str(home), "encoder": str(bundle), "index_name": f"bench-{uuid4().hex[:6]}",
            "api_keys": ",".join(f"k{n}:{key}:{scopes(n)}" for n, key in keys.items()),
        }  # fmt: skip
        if "qdrant_url" not in Settings().model_fields_set:
            port = free_port()
            settings |= {"qdrant_url": f"http://127.0.0.1:{port}", "qdrant_api_key": keys[0]}
            command = ["-m", "audiofuse", "serve-index", "--port", str(port)]
            stack.enter_context(process(command, settings, f"{settings['qdrant_url']}/readyz"))
        current, port = Settings(**settings), free_port()
        encoder, version = load_encoder(current)
        audiofuse.core.index.index.TIMEOUT_S = PATIENCE_S
        key = current.qdrant_api_key
        client = connect(current.qdrant_url, key.get_secret_value() if key else None)
        index = Index(client, current.index_name)
        generation = index.create(version, encoder)
        stack.callback(index.drop, generation)
        url = f"http://127.0.0.1:{port}"
        serving = ["-c", SERVE, str(PATIENCE_S), "service", "--port", str(port)]
        stack.enter_context(process(serving, settings, f"{url}/readyz"))
        ways = {f"{n} folders" if n else "all": asking(url, key) for n, key in keys.items()}
        for items in options.items:
            fill(index, generation, encoder, items, key_of)
            compare(f"{items} items", ways, 1, options.questions, options.turns)


if __name__ == "__main__":
    main()
