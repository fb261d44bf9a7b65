"""CSV tables as data sets publish them: what is wrong in one is named by file and line."""

import csv
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.items import is_audio

log = logging.getLogger(__name__)


def read_rows(
    table: Path, columns: Sequence[str], encoding: str = "utf-8-sig"
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row of a table by its columns' names, and the number of its line."""
    head: list[str] = []
    for number, row in read_lines(table, encoding):
        if not head:
            head = row
            if lacking := [column for column in columns if column not in head]:
                raise wrong_line(table, number, f"the table has no column {', '.join(lacking)}")
        elif len(row) != len(head):
            raise wrong_line(table, number, f"{len(row)} fields instead of {len(head)}")
        else:
            yield number, dict(zip(head, row, strict=True))
    if not head:
        raise ConfigurationError(f"{table} is empty")


def read_lines(
    table: Path, encoding: str = "utf-8-sig", *, skip_blanks: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each line that has any; ``skip_blanks``: of those after a comma."""
    try:
        with table.open("rb") as file:
            lines = (line.decode(encoding) for line in file)  # one by one, to know which is wrong
            reader = csv.reader(lines, skipinitialspace=skip_blanks, strict=True)
            try:
                yield from ((reader.line_num, row) for row in reader if row)
            except UnicodeDecodeError as error:
                raise wrong_line(table, reader.line_num + 1, f"not {encoding}: {error}") from error
            except csv.Error as error:
                raise wrong_line(table, reader.line_num, str(error)) from error
    except OSError as error:
        raise ConfigurationError(f"cannot read {table}: {error.strerror}") from error


def wrong_line(table: Path, number: int, what: str) -> ConfigurationError:
    """Return the error that says which line is wrong, and how."""
    return ConfigurationError(f"{table}, line {number}: {what}")


def find_table(folder: Path, folders: Iterable[str], *names: str) -> Path | None:
    """Return the first file of one of the names in one of the folders below ``folder``."""
    paths = (folder / each / name for each in folders for name in names)
    return next((path for path in paths if path.is_file()), None)


def sounds_in(folder: Path, *below: str) -> list[Path]:
    """Return the sound files of a folder, or of some below it, by name; none where none is."""
    folders = [path for each in below or ("",) if (path := folder / each).is_dir()]
    return [path for each in folders for path in sorted(each.iterdir()) if is_audio(path.name)]


def log_missing(table: Path, named: int, found: int) -> None:
    """Log how many of the clips that a table names have no sound file, if any."""
    if found < named:
        log.warning("%s: %d of %d clips have no sound file", table, named - found, named)


def split_list(joined: str, separator: str = ",") -> tuple[str, ...]:
    """Split a field that holds several values; none of them is blank."""
    return without_blanks(joined.split(separator))


def without_blanks(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the texts that are more than white space, without any around them."""
    return tuple(text.strip() for text in texts if text.strip())
