"""Control groups of this process: what the kernel's files about them say, of either version."""

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("sys/fs/cgroup")


def groups(root: Path, controller: str, *mounts: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups of a controller, then those above them.

    ``root`` is where ``proc`` and ``sys`` are, ``mounts`` other names than the controller's under
    which kernels mount it in version 1. Inside a container a path may be one that only the
    host sees; those of its parts that exist have files.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:  # hierarchy:controllers:path; version 2 names no controllers
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for name in (controller, *mounts) if controllers else ("",):
            mount = root / CGROUPS / name
            group = mount / path.lstrip("/")
            yield from (each for each in (group, *group.parents) if each.is_relative_to(mount))


def numbers(path: Path) -> list[int]:
    """Return the numbers in a file; none where it is absent or says ``max``."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
