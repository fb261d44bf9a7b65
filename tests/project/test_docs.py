"""What README.md, docs/ and their neighbours show: commands, links, paths and files that exist."""

import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml

from audiofuse.core.errors import Reason
from audiofuse.trainer.cli import cli as trainer_cli
from audiofuse.workers.commands.main import cli

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "deploy").glob("*.md")),
]
PROGRAMS = {
    "audiofuse": typer.main.get_command(cli),
    "audiofuse-train": typer.main.get_command(trainer_cli),
}
FOLDERS = (
    "core/",
    "workers/",
    "trainer/",
    "docs/",
    "deploy/",
    "examples/",
    "tests/",
    "src/",
    ".ci/",
)
MOST_LINES = 180
MOST_BYTES = 250_000
PNG = b"\x89PNG\r\n\x1a\n"
VALUE = re.compile(r"[A-Z]+|\.\.\.")  # what stands for something of the reader's own


def _text(page: Path) -> str:
    return page.read_text()


def _shown(page: Path) -> Iterator[str]:
    """Yield each line of a shell block, and each piece of code in the text."""
    for block in re.findall(r"^```sh\n(.+?)^```", _text(page), re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.+?^```", "", _text(page), flags=re.MULTILINE | re.DOTALL)
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))


def _calls(line: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each program of ours that a line calls, with its arguments."""
    for part in re.split(r"&&|;| \| ", re.split(r"(?:^|\s)#", line)[0]):
        words = re.findall(r"\"[^\"]*\"|'[^']*'|\S+", part)
        while words and re.match(r"[A-Z_]+=", words[0]):  # variables of this one call
            words.pop(0)
        if words and (program := Path(words[0]).name) in PROGRAMS:
            yield program, words[1:]
        elif words[:4] == ["docker", "compose", "run", "--rm"]:
            yield "audiofuse", words[5:]


def _check(program: str, arguments: list[str]) -> None:
    """Fail if a program has no such command, or the command no such option."""
    command: Any = PROGRAMS[program]
    words = list(arguments)
    while words and not words[0].startswith("-") and hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"{program} {' '.join(arguments)}: no command {name}"
        command = command.commands[name]
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    given = {word.split("=")[0] for word in words if re.match(r"--\w", word)}
    assert given <= known | {"--help"}, f"{program} {' '.join(arguments)}"


def _id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_command_that_is_shown_exists(page: Path) -> None:
    """Programs have the commands and options, the Makefile the targets, that a page shows."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrapper = (ROOT / "audiofuse").read_text()
    for line in _shown(page):
        wrapped = re.match(r"\./audiofuse (\w+)", line)
        if wrapped and re.search(rf"^{wrapped[1]}\)", wrapper, re.MULTILINE):
            continue  # a command of the wrapper's own
        for program, arguments in _calls(line):
            _check(program, arguments)
        if made := re.match(r"make ((?:[a-z-]+ ?)+)", line):
            assert set(made[1].split()) <= targets, line


def test_commands_are_really_looked_at() -> None:
    """The pages show dozens of commands, and one that does not exist is found."""
    seen = [call for page in PAGES for line in _shown(page) for call in _calls(line)]
    assert len(seen) > 50
    for arguments in (["serach", "rain"], ["search", "rain", "--limits", "5"], ["dead", "lits"]):
        with pytest.raises(AssertionError):
            _check("audiofuse", arguments)


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", _text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "DECISIONS.md"], ids=_id)
def test_every_link_and_every_path_leads_somewhere(page: Path) -> None:
    """Relative links, their anchors, and paths in code exist; none leaves the project."""
    for target in re.findall(r"\]\(([^)\s]+)\)", _text(page)):
        url = urlsplit(target)
        if url.scheme:
            continue
        path = (page.parent / url.path).resolve() if url.path else page
        assert path.is_relative_to(ROOT), target
        assert path.exists(), target
        assert not url.fragment or url.fragment in _anchors(path), target
    if page in PAGES:  # the others tell of the past, too
        _check_paths(page)


def _check_paths(page: Path) -> None:
    for code in re.findall(r"`([^`\s]+)`", _text(page)):
        if code.startswith(FOLDERS) and not VALUE.search(code.rpartition("/")[0]):
            path = code.split("::")[0].rstrip(".,")
            assert list(ROOT.glob(path)), f"{code} in {page.name}"


def test_the_first_page_is_short_and_has_pictures() -> None:
    """The README can be read in minutes, and shows what it speaks of in small pictures."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= MOST_LINES
    pictures = re.findall(r"!\[(.+?)\]\((.+?)\)", text, re.DOTALL)
    assert pictures
    for says, name in pictures:
        content = (ROOT / name).read_bytes()
        assert says
        assert content.startswith(PNG)
        assert len(content) <= MOST_BYTES


def test_internals_names_every_file_of_the_product() -> None:
    """Each file of the product has its line, and no line is of a file that went: make docs."""
    listed = _text(ROOT / "docs" / "internals.md").split("<!-- files -->")[1]
    links = set(re.findall(r"^\| \[.+?\]\(\.\./(.+?)\) \| \S", listed, re.MULTILINE))
    files: Any = runpy.run_path(str(ROOT / "docs" / "files.py"))["product_files"]()
    assert links == {path.as_posix() for path in files}


def test_internals_names_every_reason_to_reject() -> None:
    """Whoever meets a reason in a dead letter finds it among those of bad input."""
    told = _text(ROOT / "docs" / "internals.md").split("## Bad input")[1].split("\n## ")[0]
    assert {f"`{reason}`" for reason in Reason} <= set(re.findall(r"`\w+`", told))


def test_issue_forms_are_forms() -> None:
    """Each has a name, a description, and fields with labels that a form takes."""
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.stem == "config":
            continue
        assert form["name"]
        assert form["description"]
        for field in form["body"]:
            assert field["type"] in {"textarea", "dropdown", "input", "checkboxes", "markdown"}
            assert field["attributes"]["label"]


def test_whoever_gets_the_package_gets_the_licence() -> None:
    """The licence's files are named in the metadata and exist, and git has them."""
    text = (ROOT / "pyproject.toml").read_text()
    names = re.findall(r'"(.+?)"', re.findall(r"^license-files = \[(.+?)\]", text, re.MULTILINE)[0])
    assert {"LICENSE", "NOTICE"} <= set(names)
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    listed = subprocess.run(
        ["git", "ls-files", *names], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(listed.stdout.splitlines()) == set(names)
