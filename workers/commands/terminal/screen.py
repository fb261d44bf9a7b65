"""The screen: as wide as the terminal is, and what does not fit its line is shortened.

Where nobody looks, in a pipe or a file, lines are as long as they are, and Rich leaves colours out.
"""

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions, ConsoleOptions
from rich.measure import Measurement
from rich.text import Text

UNSEEN_WIDTH = 10_000  # columns where nobody looks: nothing is wrapped or shortened
LEAST = 16  # columns that a shortened path keeps, if the terminal has as many
LEFT_OUT = "…"
UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


class Screen(Console):
    """Standard output."""

    @property
    def size(self) -> ConsoleDimensions:
        """Its width and height: the terminal's, or what ``COLUMNS`` says."""
        is_known = self._width is not None or self._environ.get("COLUMNS")
        if self.is_terminal or is_known:
            return super().size
        return ConsoleDimensions(UNSEEN_WIDTH, super().size.height)

    @size.setter
    def size(self, _: tuple[int, int]) -> None:
        raise AttributeError("the terminal says how large it is")


class OneLine:
    """A path in a table, on one line however narrow that is: what does not fit lacks its middle."""

    def __init__(self, path: str) -> None:
        """Show ``path``; what would end the line or move the cursor is shown as a mark."""
        self._path = "".join(each if each.isprintable() else UNPRINTABLE for each in path)

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield Text(shortened(self._path, options.max_width), no_wrap=True)

    def __rich_measure__(self, _: Console, options: ConsoleOptions) -> Measurement:
        width = cell_len(self._path)
        return Measurement(min(width, LEAST), width).clamp(max_width=options.max_width)


def shortened(path: str, width: int) -> str:
    """Return a path in at most ``width`` columns: of its end, the file's name, twice as much."""
    if cell_len(path) <= width:
        return path
    room = max(0, width - cell_len(LEFT_OUT))
    begin = _fitting(path, room // 3)
    end = _fitting(path[::-1], room - cell_len(begin))[::-1]
    return begin + LEFT_OUT + end


def _fitting(text: str, width: int) -> str:
    """Return as much of the beginning as fits."""
    text = text[:width]
    while cell_len(text) > width:
        text = text[:-1]
    return text
