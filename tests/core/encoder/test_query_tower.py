"""The query tower travels: without torch, fastembed asks exactly as our own search does."""

import filecmp
import json
import os
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from unicodedata import category
from uuid import uuid4

import httpx
import numpy as np
import onnxruntime
import pytest
import torch
from fastapi import FastAPI
from local_encoder import LocalEncoder
from pydantic import SecretStr
from tokenizers import Tokenizer
from transformers import BertTokenizer

from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.bundles.manifest import QUERY
from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.encoder.embeddings import unit
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.processing import character_tokenizer
from audiofuse.core.encoder.query_tower import export_query_tower
from audiofuse.core.encoder.torch_runtime import words
from audiofuse.core.index.index import Index, Point, connect
from audiofuse.core.items import moment_id
from audiofuse.core.model.config import TINY
from audiofuse.core.model.hybrid import HybridEncoder
from audiofuse.core.query import Question, normalise
from audiofuse.core.search.loaded import LoadedEncoders
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.deployment.local import free_port
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.service.app import create_app

ROOT = Path(__file__).parents[3]
ANIMALS = ROOT / "examples" / "sounds" / "animals"
SOUNDS = ("bird.ogg", "cat%20meow.mp3", "crickets.wav", "crow.flac", "dog-bark.wav")
FASTEMBED = "fastembed==0.9.1"  # it needs an older huggingface-hub than the project has
QUESTIONS = ("A dog, barking!", "a cat", "birds in the MORNING", "running water")
TEXTS = (
    "a dog barking",
    "A Dog, BARKING!",
    'it\'s a rock-n-roll band (live) ... #1 @ $5 & 50% [take_2] {x} <y> ~ ^ ` | \\ / "z"',
    "  rain\n\tfalls\x0bon\x0ca\x1croof\x85at\xa0night\u2028now\u3000 ",
    "Überraschung — ein Café, naïve, ÅNGSTRÖM, \u212a, İstanbul, ẞß",
    "ΟΔΟΣ ΟΔΟΣ, Α.Σ Σ ΑΣ'Α ΑΣ\u00adΑ ΌΣΟΣ\u0301 ʰΣ",  # noqa: RUF001 - Greek is meant
    "犬が吠える 雨 🐕 e\u0301 \u200b",
    "[MASK] a [SEP] dog [PAD] [CLS] [UNK]",
    "a very long sentence " * 50,
    "unbelievablylongword" * 20,
    "?!",
    "",
)


def _shaped(pooling: str, head: str) -> Encoder:
    text = TINY.text.model_copy(update={"pooling": pooling, "head": head})
    dim = TINY.text.bert["hidden_size"] if head == "none" else 40
    return Encoder.random(TINY.model_copy(update={"text": text, "dim": dim}), 0)


ENCODERS: dict[str, Callable[[], Encoder]] = {
    "cls, projected": lambda: _shaped("cls", "linear"),
    "cls": lambda: _shaped("cls", "none"),
    "mean, anchors": lambda: _shaped("mean", "anchors"),
    "mean, projected": lambda: _shaped("mean", "linear"),
    "mean": lambda: _shaped("mean", "none"),
    "cased": lambda: Encoder.around(HybridEncoder.build(TINY), _cased_tokenizer()),
}


def _cased_tokenizer() -> BertTokenizer:
    """Return a tokenizer that would tell A from a, if normalisation let it."""
    vocabulary = character_tokenizer().get_vocab()
    capitals = dict(zip(string.ascii_uppercase, range(len(vocabulary), 128), strict=False))
    return BertTokenizer(vocab=vocabulary | capitals, do_lower_case=False)


def _export(encoder: Encoder, folder: Path) -> None:
    export_query_tower(encoder.model.text_tower, encoder.text_processor, folder)


class Exported:
    """An exported folder, asked through its files alone."""

    def __init__(self, folder: Path) -> None:
        """Load it."""
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.graph = onnxruntime.InferenceSession(
            folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"]
        )

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts as one batch."""
        encoded = self.tokenizer.encode_batch(texts)
        tokens = {
            "input_ids": np.array([each.ids for each in encoded]),
            "attention_mask": np.array([each.attention_mask for each in encoded]),
            "token_type_ids": np.array([each.type_ids for each in encoded]),
        }
        return self.graph.run(None, tokens)[0]


@pytest.fixture(params=[*ENCODERS, "default"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Encoder, Exported]:
    """Return an encoder and its exported query tower."""
    if request.param == "default":
        bundle: Path = request.getfixturevalue("default_bundle")
        return load_bundle(bundle), Exported(bundle / QUERY)
    encoder = ENCODERS[request.param]()
    _export(encoder, tmp_path / "query")
    return encoder, Exported(tmp_path / "query")


def test_onnx_equals_torch(pair: tuple[Encoder, Exported]) -> None:
    """Each text alone, and all in one padded batch, has the vector that torch gives it."""
    encoder, exported = pair
    expected = unit(encoder.encode_text(TEXTS))
    assert exported.encode_text(TEXTS) == pytest.approx(expected, abs=1e-4)
    for text, vector in zip(TEXTS, expected, strict=True):
        assert exported.encode_text([text])[0] == pytest.approx(vector, abs=1e-4), text


def test_the_graph_is_what_fastembed_feeds(pair: tuple[Encoder, Exported]) -> None:
    """Three inputs of any batch and length, and first of all outputs the vectors, as float32."""
    encoder, exported = pair
    inputs = {each.name: (each.type, each.shape) for each in exported.graph.get_inputs()}
    free = ("tensor(int64)", ["batch", "sequence"])
    assert inputs == dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), free)
    output = exported.graph.get_outputs()[0]
    assert (output.type, output.shape) == ("tensor(float)", ["batch", encoder.dim])


def test_the_exported_tokenizer_reads_as_the_tower_does(default_bundle: Path) -> None:
    """Every text becomes the same tokens, cut off at the same place, brackets or not."""
    exported = Tokenizer.from_file(str(default_bundle / QUERY / "tokenizer.json"))
    processor = load_bundle(default_bundle).text_processor
    for text in TEXTS:
        assert exported.encode(text).ids == processor([text]).ids[0].tolist(), text


def test_every_common_character_is_normalised_alike(default_bundle: Path) -> None:
    """Up to the end of the general punctuation, no character inside a word is read otherwise."""
    exported = Tokenizer.from_file(str(default_bundle / QUERY / "tokenizer.json")).normalizer
    own = load_bundle(default_bundle).text_processor.tokenizer.backend_tokenizer.normalizer
    for text in (f"A{chr(code)}B" for code in range(0x2070)):
        if category(text[1]) != "Cn":  # what is not assigned yet differs with the age of the tables
            assert exported.normalize_str(text) == own.normalize_str(normalise(text)), ascii(text)


def test_the_folder_tells_fastembed_its_limits(tmp_path: Path) -> None:
    """The files that fastembed reads name the token limit and the padding token."""
    encoder = ENCODERS["mean"]()
    encoder.text_processor.max_tokens = 7
    _export(encoder, tmp_path / "query")
    config = json.loads((tmp_path / "query" / "tokenizer_config.json").read_text())
    assert (config["model_max_length"], config["pad_token"]) == (7, "[PAD]")
    assert json.loads((tmp_path / "query" / "special_tokens_map.json").read_text()) == {}
    assert len(Exported(tmp_path / "query").tokenizer.encode("a b c d e f g h").ids) == 7


def test_exporting_is_deterministic(tmp_path: Path) -> None:
    """Two equal towers give the same bytes, used or not; who wrote them, and where, is not said."""
    encoders = [ENCODERS["mean, projected"]() for _ in range(2)]
    encoders[1].encode_text(["a dog", "some longer text"])
    for name, encoder in zip("ab", encoders, strict=True):
        _export(encoder, tmp_path / name)
    names = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")]
    assert len(names) == 5
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False)[0] == names
    graph = (tmp_path / "a" / "onnx" / "model.onnx").read_bytes()
    assert str(ROOT).encode() not in graph
    assert torch.__version__.split("+")[0].encode() not in graph


def test_exporting_leaves_the_tower_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A tower in training keeps mode, weights, gradients, attention and tokenizer; all is quiet."""
    encoder = ENCODERS["mean, projected"]()
    tower, processor = encoder.model.text_tower.train(), encoder.text_processor
    tower(*words(processor(["a dog", "longer than that"]))[:2]).sum().backward()

    def state() -> tuple[object, ...]:
        return (
            [module.training for module in tower.modules()],
            [(p.requires_grad, p.tolist(), p.grad.tolist()) for p in tower.parameters()],
            tower.bert.config.to_dict(),
            tower.bert.config._attn_implementation,
            processor.tokenizer.backend_tokenizer.to_str(),
            torch.get_rng_state().tolist(),
        )

    before = state()
    _export(encoder, tmp_path / "query")
    assert state() == before
    assert capfd.readouterr() == ("", "")


# What somebody writes who has qdrant-client and fastembed, and of us nothing but a folder.
ASKING = """
import json, sys
from importlib.util import find_spec

from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from qdrant_client import QdrantClient, models

assert find_spec("torch") is None
given = json.load(sys.stdin)
folder, name = given["folder"], given["version"]
TextEmbedding.add_custom_model(
    model=name, pooling=PoolingType.DISABLED, normalization=True, dim=given["dim"],
    sources=ModelSource(url="file://unused"), model_file="onnx/model.onnx",
)
client = QdrantClient(url=given["url"], api_key=given["key"], check_compatibility=False)
options = {"specific_model_path": folder, "cuda": False, "lazy_load": True}

def ask(question):
    query = models.Document(text=question, model=name, options=options)
    found = client.query_points("audiofuse", query=query, using="item", limit=5).points
    return [(hit.payload["key"], hit.score) for hit in found]

model = TextEmbedding(name, specific_model_path=folder, cuda=False)
print(json.dumps({
    "hits": [ask(question) for question in given["questions"]],
    "vectors": [vector.tolist() for vector in model.embed(given["texts"])],
}))
"""


@pytest.fixture(scope="module")
def foreign_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a fresh environment with qdrant-client and fastembed; no torch."""
    uv = shutil.which("uv") or shutil.which(ROOT / ".boot" / "bin" / "uv")
    if uv is None:
        _cannot("needs uv")
    folder = tmp_path_factory.mktemp("foreign")
    constraints = folder / "constraints.txt"
    pins = (ROOT / "constraints.txt").read_text().splitlines(keepends=True)
    constraints.write_text("".join(p for p in pins if not p.startswith("huggingface-hub==")))
    python = folder / "venv" / "bin" / "python"
    packages = ["qdrant-client", FASTEMBED, "--constraints", str(constraints)]
    for command in (
        ["venv", "--python", sys.executable, str(folder / "venv")],
        ["pip", "install", "--python", str(python), *packages],
    ):
        done = subprocess.run([uv, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            _cannot(f"uv {' '.join(command[:2])} failed: {done.stderr[-500:]}")
    return python


def _cannot(reason: str) -> None:
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture
def index_server(tmp_path: Path, eventually: Callable[..., object]) -> Iterator[tuple[str, str]]:
    """Run the embedded index as a process of its own; return its URL and key."""
    port, key = free_port(), uuid4().hex
    command = [
        sys.executable,
        "-m",
        "audiofuse.workers.commands.main",
        "serve-index",
        "--port",
        str(port),
    ]
    environment = os.environ | {
        PREFIX + "HOME": str(tmp_path),
        PREFIX + "QDRANT_API_KEY": key,
    }
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, env=environment) as process:
        eventually(lambda: process.poll() is not None or _is_ready(url))
        yield url, key
        process.terminate()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False


def test_fastembed_asks_as_we_do(
    default_bundle: Path, index_server: tuple[str, str], foreign_python: Path
) -> None:
    """Without torch, a Document asked of the index gets the ranking and scores of our search."""
    encoder, version = load_bundle(default_bundle), default_bundle.name
    url, api_key = index_server
    index = Index(connect(url, api_key), "audiofuse")
    syncer = Syncer(
        BucketSide(FolderStore(ANIMALS), Limits(60, 10**7)),
        IndexSide(index, index.create(version, encoder)),
        LocalEncoder(encoder),
    )
    for key in SOUNDS:
        syncer.sync(key)
    given = {
        "url": url, "key": api_key, "folder": str(default_bundle / QUERY), "version": version,
        "dim": encoder.dim, "questions": QUESTIONS, "texts": TEXTS,
    }  # fmt: skip
    done = subprocess.run(
        [foreign_python, "-c", ASKING],
        input=json.dumps(given), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    searcher = Searcher(index, LoadedEncoders(lambda _: encoder))
    for question, hits in zip(QUESTIONS, answer["hits"], strict=True):
        expected = searcher.search(Question(question, limit=5)).hits
        assert len(expected) == len(SOUNDS)
        assert [name for name, _ in hits] == [hit.key for hit in expected]
        assert [score for _, score in hits] == pytest.approx([h.score for h in expected], abs=1e-4)
    assert np.array(answer["vectors"]) == pytest.approx(unit(encoder.encode_text(TEXTS)), abs=1e-4)


FOLLOWING = """
import json, sys
from plain_qdrant import QdrantClient, ask, live, os

client = QdrantClient(os.environ["QDRANT_URL"], api_key=os.environ["QDRANT_API_KEY"])
for question in sys.stdin:
    hits = [[hit.payload["key"], hit.score] for hit in ask(client, question, 5)]
    print(json.dumps([live(client)[1], hits]), flush=True)
"""


@pytest.mark.timeout(300)
def test_the_example_keeps_in_step_with_the_alias(
    default_bundle: Path, index_server: tuple[str, str], foreign_python: Path, tmp_path: Path,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
) -> None:  # fmt: skip
    """One program without audiofuse asks on through a switch, each time by the live version."""
    url, api_key = index_server
    index, published = Index(connect(url, api_key), "audiofuse"), Settings(home=tmp_path)
    other = save_bundle(load_bundle(default_bundle), tmp_path, "other", "")
    registry, encoders = open_registry(published), {}
    for bundle in (default_bundle, other):
        encoders[registry.publish(bundle)] = encoder = load_bundle(bundle)
        generation = index.create(bundle.name, encoder)
        syncer = Syncer(
            BucketSide(FolderStore(ANIMALS), Limits(60, 10**7)),
            IndexSide(index, generation),
            LocalEncoder(encoder),
        )
        for key in SOUNDS[: 3 if bundle is other else None]:
            syncer.sync(key)
    searcher = Searcher(index, LoadedEncoders(encoders.__getitem__, encoders))
    key = SecretStr("foreigner:" + 20 * "k" + ":search")
    with serving(create_app(searcher, published.model_copy(update={"api_keys": key}))) as service:
        environment = os.environ | {
            "QDRANT_URL": url, "QDRANT_API_KEY": api_key, "AUDIOFUSE_SEARCH_URL": service,
            "AUDIOFUSE_SEARCH_KEY": 20 * "k", "PYTHONPATH": str(ROOT / "examples"),
        }  # fmt: skip
        with subprocess.Popen(
            [foreign_python, "-W", "ignore", "-c", FOLLOWING], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as program:  # fmt: skip
            assert program.stdin
            assert program.stdout
            for bundle in (default_bundle, other):
                index.promote(index.generation(bundle.name))
                searcher._live._forget()
                print(QUESTIONS[0], file=program.stdin, flush=True)
                version, hits = json.loads(program.stdout.readline())
                expected = searcher.search(Question(QUESTIONS[0], limit=5)).hits
                keys = [hit.key for hit in expected]
                assert (version, [key for key, _ in hits]) == (bundle.name, keys)
                for (_, score), hit in zip(hits, expected, strict=True):
                    assert score == pytest.approx(hit.score, abs=1e-4)
            program.stdin.close()
            assert program.wait(20) == 0
    at = {"item": expected[0].id, "key": "long.wav", "start_s": 750.0, "end_s": 755.0}
    vectors = [1.0] * encoder.dim, [1.0] * encoder.audio_dim
    index.upsert(generation.moments, [Point(moment_id(expected[0].id, 150), at, *vectors)])
    with serving(create_app(searcher, published)) as service:
        environment |= {"AUDIOFUSE_SEARCH_URL": service, "AUDIOFUSE_SEARCH_KEY": ""}
        example = [foreign_python, "-W", "ignore", ROOT / "examples" / "plain_qdrant.py"]
        said = subprocess.check_output([*example, QUESTIONS[0]], env=environment, text=True)
    told = [line.split("  ")[1] for line in said.splitlines()]
    assert told == [*keys, "long.wav, 750 to 755 s"]
