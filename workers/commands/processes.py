"""The commands that run until they are told to end: worker, intake, exporter, query service, index.

As in ``main.py`` they import what they need when they run.
"""

import os
import signal
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from audiofuse.core.errors import AudiofuseError, ConfigurationError
from audiofuse.core.memory import importing
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.workers.telemetry.logs import configure_logging
from audiofuse.workers.telemetry.names import Source

if TYPE_CHECKING:
    from fastapi import FastAPI

WATCH_S = 0.5  # how often an intake looks whether its thread still runs
# How long an intake waits after SIGTERM for what its thread does. Higher: fewer events are handed
# over twice; lower: a sooner end, while a long poll may last 20 s.
INTAKE_GRACE_S = 3.0

# Seconds for which a connection that nobody uses is kept. Lower than a client keeps it, its next
# question may meet one that is just being closed; httpx keeps it for 5.
KEPT_ALIVE_S = 15

Port = Annotated[int, typer.Option(help="TCP port.")]


def worker(context: typer.Context) -> None:
    """Run a worker: take keys from the queue and sync them, until SIGTERM.

    It is a supervisor of AUDIOFUSE_PROCESSES processes that take messages, and of one that encodes
    for all of them. What is given beside is handed on to Celery, as in: audiofuse worker -E
    """
    from audiofuse.workers.host.supervisor import supervise

    current = Settings()
    configure_logging(current)
    raise typer.Exit(supervise(current, context.args))


def intake(
    source: Annotated[Source, typer.Argument(help="Where events come from.")],
) -> None:
    """Run an intake: hand over what changes in the bucket to the workers, until SIGTERM.

    AUDIOFUSE_BUCKET and AUDIOFUSE_BROKER_URL say whose events, and to whom.

    folder: watches the bucket, a folder of this machine; needs AUDIOFUSE_QDRANT_URL, too.

    sqs: reads AUDIOFUSE_SQS_QUEUE_URL, where S3 sends events itself or by SNS or EventBridge.

    redis: reads the list AUDIOFUSE_REDIS_EVENTS_KEY on AUDIOFUSE_REDIS_EVENTS_URL, for MinIO.

    webhook: listens on AUDIOFUSE_WEBHOOK_LISTEN; who has AUDIOFUSE_WEBHOOK_TOKEN posts to /events.

    What to set up at the storage is in deploy/connect.md.
    """
    with importing():
        from audiofuse.workers.intake.build import build_intake

    current = begin("intake")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    run = build_intake(current, source).run
    # In a thread of its own, because a long poll cannot be interrupted. What it takes and does not
    # hand over stays with the source.
    thread = threading.Thread(target=run, args=[stop], daemon=True)
    thread.start()
    while thread.is_alive() and not stop.wait(WATCH_S):
        pass
    if not stop.is_set():
        raise AudiofuseError(f"the {source} intake ended by itself; the reason is logged above")
    thread.join(INTAKE_GRACE_S)


def exporter() -> None:
    """Tell Prometheus what belongs to the whole deployment, until SIGTERM: deploy/metrics.md.

    It asks queue, index, bucket and registry at each scrape of AUDIOFUSE_METRICS_LISTEN. One is
    enough for a deployment.
    """
    with importing():
        from audiofuse.workers.deployment.exporter import tell_of

    current = begin("exporter")
    if not current.metrics_listen:
        raise ConfigurationError(f"{PREFIX}METRICS_LISTEN is not set: where should it listen?")
    tell_of(current)
    threading.Event().wait()


def serve(
    port: Port = 7700,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for other machines.")
    ] = "127.0.0.1",
    *,
    ask: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A deployment to ask, as URL or name=URL; several times."),
    ] = None,
    is_open: Annotated[
        bool, typer.Option("--open", help="Let other machines ask without a key.")
    ] = False,
) -> None:
    """Run the query service, until SIGTERM.

    With --ask it has no index of its own, and asks other deployments: docs/asking.md
    """
    with importing():
        from audiofuse.workers.service.admission.entrance import check_exposure

    if ask:
        os.environ[PREFIX + "ASK"] = ",".join(ask)
    current = begin("search")
    check_exposure(host, current, is_open=is_open)
    if current.ask:
        with importing():
            from audiofuse.workers.federation.app import create_federation

        _serve(create_federation(current), port, host)
        return
    with importing():
        from audiofuse.workers.service.app import running

    with running(current) as app:
        _serve(app, port, host)


def serve_index(port: Port = 6333) -> None:
    """Own an embedded Qdrant under AUDIOFUSE_HOME and serve it to this machine's processes."""
    with importing():
        from audiofuse.core.index.embedded import create_app
        from audiofuse.core.index.engine import Engine

    current = begin("index")
    if current.qdrant_api_key is None:
        raise ConfigurationError(f"set {PREFIX}QDRANT_API_KEY: whoever has it may change the index")
    with closing(Engine(current.home / "index")) as engine:
        _serve(create_app(engine, current.qdrant_api_key.get_secret_value()), port)


def begin(process: str) -> Settings:
    """Return the settings; from here on this process logs, and tells metrics, as they say."""
    from audiofuse.workers.telemetry.metrics import Process, serve_metrics
    from audiofuse.workers.telemetry.tracing import start_tracing

    current = Settings()
    configure_logging(current)
    serve_metrics(current, Process(process))
    start_tracing(current, process)
    return current


def _serve(app: "FastAPI", port: int, host: str = "127.0.0.1") -> None:
    import uvicorn

    uvicorn.run(
        app, host=host, port=port, server_header=False, log_config=None, log_level="warning",
        timeout_keep_alive=KEPT_ALIVE_S,
    )  # fmt: skip
