"""Writes the list of files in docs/internals.md: ``make docs``.

A file's line is what it says about itself first: a module's docstring, a script's first comment, a
page's description.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "internals.md"
PACKAGES = ("core", "workers", "trainer")
TOLD = {".py", ".lua", ".js", ".css", ".html"}
BLOCK = re.compile(r"(?<=<!-- files -->\n).*(?=<!-- /files -->)", re.DOTALL)


def product_files() -> list[Path]:
    """Return every file of ours with code in it, below the root, a room's own before its rooms'."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    files = [path.relative_to(ROOT) for path in paths if path.suffix in TOLD]
    code = [path for path in files if path.name != "__init__.py"]
    return sorted(code, key=lambda path: (PACKAGES.index(path.parts[0]), path.parent, path.name))


def says(path: Path) -> str:
    """Return the first sentence with which a file says what it is for."""
    text = (ROOT / path).read_text()
    if path.suffix == ".py":
        said = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    elif path.suffix == ".html":
        said = "".join(re.findall(r'name="description" content="(.+?)"', text)[:1])
    else:
        comment = re.match(r"(?://|--|/\*) ?(.+?)(?:\*/|\n(?!//|--))", text, re.DOTALL)
        said = re.sub(r"\n(//|--) ?", " ", comment[1]) if comment else ""
    return re.split(r"(?<=[.!?])\s", " ".join(said.split()))[0].removesuffix(".")


def listing() -> str:
    """Return the list in Markdown, a table for each room."""
    lines: list[str] = []
    room = Path()
    for path in product_files():
        if path.parent != room:
            room = path.parent
            init = room / "__init__.py"
            title = f"{says(init)}." if (ROOT / init).exists() else ""
            lines += ["", f"**{room.as_posix()}** {title}".rstrip(), "", "| file | |", "|---|---|"]
        lines.append(f"| [{path.name}](../{path.as_posix()}) | {says(path)} |")
    return "\n".join(lines).lstrip() + "\n\n"


def main() -> None:
    """Write it."""
    PAGE.write_text(BLOCK.sub(lambda _: listing(), PAGE.read_text()))
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
