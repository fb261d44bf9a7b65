"""Options that several commands have, and how they print JSON."""

import json
import re
from typing import Annotated

import typer

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Prefix = Annotated[str, typer.Option(help="Only keys that begin like this.")]

Remove = Annotated[
    bool, typer.Option("--remove", help="Remove points also where very many lost their objects.")
]
Inventory = Annotated[
    str,
    typer.Option(
        metavar="MANIFEST",
        help="S3 Inventory to compare with, s3://.../manifest.json, instead of listing the bucket; "
        "of one of several buckets with --prefix NAME/.",
    ),
]


def seconds(duration: str) -> float:
    """Read a duration: 90s, 30m, 6h or 2d."""
    found = re.fullmatch(r"(\d+)([smhd])", duration)
    if not found or not int(found[1]):
        raise typer.BadParameter(f"{duration!r} is no duration such as 90s, 30m, 6h or 2d")
    return float(int(found[1]) * SECONDS[found[2]])


def print_json(value: object) -> None:
    """Print for scripts."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
