"""Homes: where state lives, and in which of them a local deployment runs.

``audiofuse up`` writes into its home how other commands reach it. Where that home is not the
default one it leaves a link to it there, so that they need not be told.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

DEPLOYMENT_FILE = "deployment.env"  # written by `audiofuse up`, so that other commands find it


def default_home() -> Path:
    """Return where state lives unless AUDIOFUSE_HOME says otherwise: the XDG data folder."""
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data, "audiofuse").expanduser()


def _elsewhere() -> Path:
    """Return the folder of links to the homes of deployments that run elsewhere."""
    return default_home() / "elsewhere"


def running_elsewhere() -> list[Path]:
    """Return the homes, other than the default one, in which local deployments run."""
    homes = [link.resolve() for link in _elsewhere().glob("*")]
    return sorted(home for home in homes if (home / DEPLOYMENT_FILE).exists())


def tell_elsewhere(home: Path) -> None:
    """Have commands that are told no home find the deployment that runs in this one.

    Where the default home cannot be written nobody is told, and AUDIOFUSE_HOME has to be set.
    """
    if home != default_home().resolve():
        with suppress(OSError):
            _elsewhere().mkdir(parents=True, exist_ok=True)
            _link(home).unlink(missing_ok=True)  # of one that was killed
            _link(home).symlink_to(home)


def forget_elsewhere(home: Path) -> None:
    """Have nobody look for a deployment in this home any more."""
    with suppress(OSError):
        _link(home).unlink(missing_ok=True)


def _link(home: Path) -> Path:
    return _elsewhere() / hashlib.sha256(str(home).encode()).hexdigest()[:16]


def deployment_file(home: str | Path | None) -> Path:
    """Return where it is told how the local deployment is reached.

    In its ``home``; where none is named in the default one, unless none runs there and exactly one
    elsewhere.
    """
    named = Path(home or default_home(), DEPLOYMENT_FILE).expanduser()
    if home or named.exists():
        return named
    others = running_elsewhere()
    return others[0] / DEPLOYMENT_FILE if len(others) == 1 else named
