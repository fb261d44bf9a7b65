"""What ``make bench-worker`` measured, as tables, and what deploy/capacity.md says of it."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker_cpu import DECODERS, DEVICE, MESSAGES, OTHER, SUPERVISOR
from worker_rig import Measured

CAPACITY = Path(__file__).parents[2] / "deploy" / "capacity.md"
BLOCK = re.compile(r"(?<=<!-- bench-worker -->\n).*(?=<!-- /bench-worker -->)", re.DOTALL)
SERVERS = ("index", "broker", "S3")
ROLES = (SUPERVISOR, MESSAGES, DECODERS, DEVICE, OTHER, *SERVERS)
GPUS = (500, 1500, 3000)  # clips a second of which it is told how many cores they need
ROW = {  # how the page calls what is measured
    SUPERVISOR: "supervisor",
    MESSAGES: "message processes",
    DECODERS: "decoders",
    DEVICE: "device process, without the encoder",
    OTHER: "other processes",
    "index": "index, embedded",
    "broker": "Valkey",
    "S3": "S3 server, SeaweedFS",
}


def rates(measured: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """Return how fast each variant was, against ``bare`` and against the naive of its bucket."""
    bare = measured["bare"].clips_per_s if "bare" in measured else math.nan
    rows = {}
    for name, each in measured.items():
        naive = next((own for own in measured if _is_naive_of(own, name)), None)
        rows[name] = {
            "clips/s": each.clips_per_s,
            "times bare": each.clips_per_s / bare,
            "times naive": each.clips_per_s / measured[naive].clips_per_s if naive else math.nan,
            "batch fill": each.fill,
            "padding": each.padding,
            "MiB 1/4": each.mib[0] if each.mib else math.nan,
            "MiB end": each.mib[-1] if each.mib else math.nan,
        }
    return rows


def _is_naive_of(naive: str, name: str) -> bool:
    return naive.startswith("naive") and naive.split(",")[1] == (*name.split(","), "")[1]


def costs(measured: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """Return CPU milliseconds a message by role, of ours together and of all."""
    there = [role for role in ROLES if any(each.cpu_ms.get(role) for each in measured.values())]
    return {
        name: {role: each.cpu_ms.get(role, 0.0) for role in there}
        | {"ours": each.ours_ms, "all": sum(each.cpu_ms.values())}
        for name, each in measured.items()
    }


def model(
    free: Mapping[str, Measured], real: Mapping[str, Measured], seconds: float, told: str
) -> str:
    """Return the page's block: measured costs by bucket, and what is computed from them.

    ``free`` are hosts whose encoder costs nothing, ``real`` the same with one that computes on the
    CPU; ``told`` says which command measured them, when and on what.
    """
    names = list(free)
    roles = [role for role in ROLES if any(each.cpu_ms.get(role) for each in free.values())]
    costs_ms = {ROW[role]: [each.cpu_ms.get(role, 0.0) for each in free.values()] for role in roles}
    servers = {ROW[role] for role in SERVERS}
    lines = [told, "", *_head(f"CPU ms a message, {seconds:.0f}-s clips", names)]
    lines += [_row(name, own, 2) for name, own in costs_ms.items() if name not in servers]
    lines.append(_row("**a host, all of that**", [each.ours_ms for each in free.values()], 2))
    if real:
        extra = [real[name].ours_ms - free[name].ours_ms for name in names]
        lines.append(_row("an mn04-sized encoder on the CPU, besides", extra, 2))
    lines += [_row(name, own, 2) for name, own in costs_ms.items() if name in servers]
    lines += ["", *_head("computed from that: messages a second", names)]
    lines.append(_row("a core of a host beside a GPU", _a_second(free, 1), 0))
    if real:
        lines.append(_row("a core of a host that encodes on the CPU", _a_second(real, 1), 0))
    busiest = [1000 / each.cpu_ms[MESSAGES] for each in free.values()]
    lines.append(_row("the most of one message process: it has one core at a time", busiest, 0))
    lines += ["", *_head("computed from that: cores of a host", names)]
    for gpu in GPUS:
        cores = [math.ceil(gpu * each.ours_ms / 1000) for each in free.values()]
        lines.append(_row(f"beside a GPU that hears {gpu:,} clips a second", cores, 0))
    return "\n".join(lines) + "\n"


def figures(
    free: Mapping[str, Measured], real: Mapping[str, Measured], seconds: float, told: str
) -> dict[str, object]:
    """Return what ``audiofuse plan`` computes from: by bucket, of those measured in both ways."""
    cpu_ms = {
        name: {
            "messages": each.ours_ms - each.cpu_ms[DEVICE] - each.cpu_ms[DECODERS],
            "device": each.cpu_ms[DEVICE],
            "decoders": each.cpu_ms[DECODERS],
            "encoder": real[name].ours_ms - each.ours_ms,
            "servers": sum(each.cpu_ms.get(role, 0.0) for role in SERVERS),
        }
        for name, each in free.items()
        if name in real
    }
    rounded = {
        name: {part: round(ms, 2) for part, ms in parts.items()} for name, parts in cpu_ms.items()
    }
    return {"measured": told, "seconds": seconds, "cpu_ms": rounded}


def _a_second(measured: Mapping[str, Measured], cores: int) -> list[float]:
    return [1000 * cores / each.ours_ms for each in measured.values()]


def _head(title: str, names: Sequence[str]) -> list[str]:
    return [f"| {title} | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]


def _row(name: str, values: Sequence[float], digits: int) -> str:
    return f"| {name} | {' | '.join(f'{value:,.{digits}f}' for value in values)} |"


def write_model(text: str) -> None:
    """Put the block into the page, in place of the one before."""
    page = CAPACITY.read_text()
    if not BLOCK.search(page):
        raise ValueError(f"{CAPACITY} has no place for it")
    CAPACITY.write_text(BLOCK.sub(lambda _: text, page))
