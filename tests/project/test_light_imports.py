"""What needs no GPU starts where there is no PyTorch, and without waiting for any."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bundles import saved_bundle

if TYPE_CHECKING:
    from audiofuse.core.encoder.encoder import Encoder

ROOT = Path(__file__).parents[2]
BLOCKED = ("torch", "torchaudio", "transformers")


LIGHT = (
    "audiofuse.core.encoder.encoder",
    "audiofuse.core.search.search",
    "audiofuse.workers.indexing.build",
    "audiofuse.workers.indexing.worker",
    "audiofuse.workers.intake.build",
    "audiofuse.workers.service.app",
)


def test_they_are_imported_without_torch() -> None:
    """Workers, search, query service and intake are imported though PyTorch cannot be."""
    _run("".join(f"import {module}\n" for module in LIGHT))


def test_what_takes_messages_computes_nothing() -> None:
    """Processes that take messages are small: nothing in them can run a model, or decode."""
    blocked = (*BLOCKED, "onnxruntime", "tokenizers", "onnx", "av")
    modules = "import audiofuse.workers.indexing.app, audiofuse.workers.indexing.build"
    _run(modules, blocked=blocked)


def test_asking_needs_no_more_than_what_is_installed_for_it() -> None:
    """Without the packages of any extra ``search`` asks, and what needs one says which."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*extras["worker"], *extras["local"]]
    names = [re.split(r"[^\w-]", each)[0].replace("-", "_") for each in needed]
    names.remove("audiofuse")
    assert {"celery", "torch", "qdrant_client"} <= {*names}
    script = (
        "from audiofuse.workers.commands.main import main; from audiofuse import Client; main()"
    )
    for command, code, said in (
        (["search", "rain"], 1, "no query service answers"),
        (["worker"], 2, "pip install 'audiofuse[local]'"),
    ):
        ended = _ended(script, command, [*names, "sklearn"])
        assert ended.returncode == code, ended.stderr
        assert said in ended.stderr


# What a worker does with a bundle on a CPU, and a query service with a question.
INDEXING = """
import numpy as np
from audiofuse.core.bundles.loading import load_encoder
from audiofuse.core.search.loaded import LoadedEncoder
from audiofuse.core.settings import Settings
from audiofuse.workers.indexing.device.device import Device
from audiofuse.workers.telemetry.names import Lane

encoder, _ = load_encoder(Settings(device="cpu", encoder=sys.argv[1]), spare_cpus=1)
device = Device(encoder, 40.0)
sound = device.begin("a hum", Lane.LIVE)
device.give(sound, np.full(32_000, 0.1, np.float32))
device.end(sound)
item = sound.answer.result(60).item
device.close()
assert np.isfinite(item @ LoadedEncoder(encoder).encode_text("hum"))
assert not {"torch", "transformers", "onnx"} & {n for n, m in sys.modules.items() if m}
"""


def test_a_cpu_indexes_and_searches_without_torch(tiny_encoder: "Encoder", tmp_path: Path) -> None:
    """On a CPU a sound is encoded, fused and asked for, though PyTorch cannot be imported."""
    _run(INDEXING, saved_bundle(tiny_encoder, tmp_path, "tiny", ""))


def test_onnx_runtime_tells_nobody_what_is_run(tmp_path: Path) -> None:
    """Its telemetry is off before it is imported: it makes no file for what it would send."""
    quiet = {"CI", "ORT_DISABLE_TELEMETRY"}  # CI alone would turn it off, too
    places = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    variables = {name: value for name, value in os.environ.items() if name not in quiet} | places
    command = [sys.executable, "-c", "import audiofuse.core.encoder.onnx_runtime"]
    subprocess.run(command, env=variables, check=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def _run(script: str, *arguments: Path, blocked: Sequence[str] = BLOCKED) -> None:
    done = _ended(script, list(map(str, arguments)), blocked)
    assert done.returncode == 0, done.stderr


def _ended(
    script: str, arguments: Sequence[str], blocked: Sequence[str]
) -> "subprocess.CompletedProcess[str]":
    block = f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
    command = [sys.executable, "-c", block + script, *arguments]
    nowhere = {"AUDIOFUSE_SEARCH_URL": "http://127.0.0.1:9"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | nowhere
    )
