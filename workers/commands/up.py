"""The command that runs everything on this machine: ``audiofuse up --help``."""

import signal
import threading
import time
import webbrowser
from typing import Annotated, NoReturn

import typer

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.terminal.screen import Screen

WATCH_S = 0.5  # how often it looks whether all that it runs is still there, and what changed
PAGE_PORT = 7700  # unless it is taken: a bookmark of the page stays good

console = Screen()


def up(
    bucket: Annotated[
        str,
        typer.Option(
            help="Folder to index and keep in step; or s3://name, whose events reach the queue "
            "AUDIOFUSE_SQS_QUEUE_URL."
        ),
    ],
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
    """Run everything on this machine for one bucket, until Ctrl-C."""
    current, interrupted = Settings(bucket=bucket), threading.Event()

    def interrupt(*_: object) -> NoReturn:
        interrupted.set()  # besides: what is raised in a destructor or around a fork is lost
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore SIGINT
        signal.signal(number, interrupt)
    try:
        _run(current, interrupted, _page_port(port), open_page=open_page, quiet=quiet)
    except KeyboardInterrupt:
        console.print("stopped")


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
    from audiofuse.workers.commands.terminal.following import told
    from audiofuse.workers.deployment.local import LocalDeployment
    from audiofuse.workers.deployment.progress import Follower

    console.print(f"starting for {current.bucket}; state and logs are in {current.home}")
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
