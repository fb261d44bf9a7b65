"""Find sounds by a sentence: the names that other programs use.

    from audiofuse import open_searcher

Rooms, from the ground up: ``core`` (sounds, encoders, index, search), ``workers`` (what runs as a
process), ``trainer`` (what trains an encoder). What is named here stays; the rest may move.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiofuse.core.query import Filter, Question
    from audiofuse.core.search.search import AsyncSearcher, Searcher, open_searcher
    from audiofuse.core.settings import Settings
    from audiofuse.workers.programs.client import AsyncClient, Client

__version__ = version("audiofuse")
__all__ = [
    "AsyncClient",
    "AsyncSearcher",
    "Client",
    "Filter",
    "Question",
    "Searcher",
    "Settings",
    "__version__",
    "open_searcher",
]

_HOMES = {
    "AsyncClient": "audiofuse.workers.programs.client",
    "AsyncSearcher": "audiofuse.core.search.search",
    "Client": "audiofuse.workers.programs.client",
    "Filter": "audiofuse.core.query",
    "Question": "audiofuse.core.query",
    "Searcher": "audiofuse.core.search.search",
    "Settings": "audiofuse.core.settings",
    "open_searcher": "audiofuse.core.search.search",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: most processes need no PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'audiofuse' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
