"""The command that runs everything on this machine: ``audiofuse up --help``."""

import json
import re
import signal
import threading
import time
import webbrowser
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import SecretStr

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.terminal.screen import Screen

WATCH_S = 0.5  # how often it looks whether all that it runs is still there, and what changed
PAGE_PORT = 7700  # unless it is taken: a bookmark of the page stays good

console = Screen()


def up(
    bucket: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder to index and keep in step; or s3://name, whose events reach the queue "
            "AUDIOFUSE_SQS_QUEUE_URL. Several times for several, which are called like their last "
            "folder, or as in NAME=/srv/sounds. Unset: what AUDIOFUSE_BUCKET or _BUCKETS say."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help=f"Port of the page; unset: {PAGE_PORT}, or another if taken."
        ),
    ] = None,
    *,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Do not tell what is indexed, only that all runs.")
    ] = False,
) -> None:
    """Run everything on this machine for a bucket, or several, until Ctrl-C."""
    current, interrupted = _settings(bucket or []), threading.Event()

    def interrupt(*_: object) -> NoReturn:
        interrupted.set()  # besides: what is raised in a destructor or around a fork is lost
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore SIGINT
        signal.signal(number, interrupt)
    try:
        _run(current, interrupted, _page_port(port), open_page=open_page, quiet=quiet)
    except KeyboardInterrupt:
        console.print("stopped")


def _settings(given: list[str]) -> Settings:
    """Return the settings for the buckets that were given; without any, as they are."""
    from audiofuse.core.storage.mounts import BUCKET_NAME
    from audiofuse.core.storage.store import S3_SCHEME, folder_root, has_bucket

    if not given:
        current = Settings()
        if not has_bucket(current):
            raise ConfigurationError("say what to index: audiofuse up --bucket FOLDER")
        return current
    if len(given) == 1:
        return Settings(bucket=given[0])
    mounts = []
    for each in given:
        name, _, address = each.rpartition("=")
        if "/" in name:  # the sign is in a path
            name, address = "", each
        if not address.startswith(S3_SCHEME):
            address = str(folder_root(Path(address)))
        name = name or address.rstrip("/").rpartition("/")[2]
        if not re.fullmatch(BUCKET_NAME, name):
            raise ConfigurationError(f"--bucket {each}: give it a name, as in name={each}")
        mounts.append({"name": name, "address": address})
    return Settings(buckets=SecretStr(json.dumps(mounts)))


def _page_port(wanted: int | None) -> int | None:
    """Return the port of the page; ``None`` for any."""
    from audiofuse.workers.deployment.local import is_free

    if wanted and not is_free(wanted):
        raise ConfigurationError(f"port {wanted} is taken; without --port a free one is found")
    return wanted or (PAGE_PORT if is_free(PAGE_PORT) else None)


def _run(
    current: Settings, interrupted: threading.Event, port: int | None, *,
    open_page: bool, quiet: bool,
) -> NoReturn:  # fmt: skip
    from audiofuse.core.storage.store import shown_bucket
    from audiofuse.workers.commands.terminal.following import told
    from audiofuse.workers.deployment.local import LocalDeployment
    from audiofuse.workers.deployment.progress import Follower

    console.print(f"starting for {shown_bucket(current)}; state and logs are in {current.home}")
    began = time.time()
    with LocalDeployment(current, interrupted, port) as deployment:
        url = deployment.settings.search_url
        console.print(
            f"ready: drop sounds into the bucket, and search at {url}\n"
            "or in another terminal:\n  audiofuse search 'a dog barking'\n  audiofuse status\n"
            f"Metrics: {deployment.targets}. Ctrl-C stops everything.",
            soft_wrap=True,
        )
        if open_page:
            webbrowser.open(url)
        looks = None if quiet else told(Follower(deployment.settings, began), console)
        while True:
            deployment.watch()
            if looks:
                next(looks)
            time.sleep(WATCH_S)
