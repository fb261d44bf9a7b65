"""The command line: ``audiofuse --help``.

Commands import what they need when they run, so that asking a question never loads torch.
Exit codes: 0 done, 1 something failed or is not reachable, 2 wrong usage or configuration.
"""

import json
import os
import signal
import sys
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from pydantic import ValidationError
from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import track

from audiofuse.core.errors import AudiofuseError, ConfigurationError, QueryError
from audiofuse.core.settings import PREFIX, Settings, settings_table
from audiofuse.workers.commands.dead import dead_cli
from audiofuse.workers.commands.options import Json, Prefix, print_json, seconds
from audiofuse.workers.commands.rollout import rollout_cli
from audiofuse.workers.commands.search import search
from audiofuse.workers.telemetry.logs import configure_logging
from audiofuse.workers.telemetry.names import Source

if TYPE_CHECKING:
    from fastapi import FastAPI

    from audiofuse.core.encoder.encoder import Encoder

FAILURE, USAGE = 1, 2
WATCH_S = 0.5  # how often a parent looks after what it runs
INTAKE_GRACE_S = 3.0

cli = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find sounds by sentences. Start with: audiofuse up --bucket FOLDER, then, in another "
    "terminal: audiofuse search 'a dog barking'.",
)
encoder_cli = typer.Typer(no_args_is_help=True, help="Make encoder bundles.")
cli.add_typer(encoder_cli, name="encoder")
cli.add_typer(dead_cli, name="dead")
bundle_cli = typer.Typer(no_args_is_help=True, help="Look into encoder bundles.")
cli.add_typer(bundle_cli, name="bundle")
cli.add_typer(rollout_cli, name="rollout")
cli.command()(search)
console = Console()


Bundle = Annotated[Path, typer.Argument(help="The bundle's folder.")]
Port = Annotated[int, typer.Option(help="TCP port.")]


@cli.command()
def up(
    bucket: Annotated[
        str,
        typer.Option(
            help="Folder to index and keep in step; or s3://name, whose events reach the queue "
            "AUDIOFUSE_SQS_QUEUE_URL."
        ),
    ],
) -> None:
    """Run everything on this machine for one bucket, until Ctrl-C."""
    current = Settings(bucket=bucket)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    try:
        _run_until_interrupted(current)
    except KeyboardInterrupt:
        console.print("stopped")


def _run_until_interrupted(current: Settings) -> NoReturn:
    from audiofuse.workers.deployment.local import LocalDeployment

    console.print(f"starting for {current.bucket}; state and logs are in {current.home}")
    with LocalDeployment(current) as deployment:
        console.print(
            f"ready: drop sounds into the bucket, and search at {deployment.settings.search_url}\n"
            "or in another terminal:\n  audiofuse search 'a dog barking'\n  audiofuse status\n"
            f"Metrics: {deployment.targets}. Ctrl-C stops everything."
        )
        while True:
            deployment.watch()
            time.sleep(WATCH_S)


@cli.command()
def status(*, as_json: Json = False) -> None:
    """Show queue, index and the last errors."""
    from audiofuse.workers.commands.display import facts_table, letters_table, moment
    from audiofuse.workers.deployment.status import read_status

    state = read_status(Settings())
    if as_json:
        print_json(state.as_dict())
        return
    index = {"live encoder": state.version, "items": state.items, "rejected": state.dead_letters}
    queue = state.queue | ({"broken, not ours": state.broken} if state.broken else {})
    console.print(facts_table("queue", queue), facts_table("index", index))
    if state.reconciled:
        title = f"last reconciled {moment(state.reconciled.at)}"
        console.print(facts_table(title, state.reconciled.found))
    if state.latest:
        console.print(facts_table("rejected", state.reasons))
        console.print(letters_table("last errors", state.latest))


@cli.command()
def settings(*, as_json: Json = False) -> None:
    """Show every setting, its value (secrets hidden), where it comes from and what it means."""
    from audiofuse.workers.commands.display import settings_rows

    rows = settings_table(Settings())
    if as_json:
        print_json({name: {"value": value, "from": source} for name, value, source, _ in rows})
    else:
        console.print(settings_rows(rows))


@cli.command()
def evaluate(
    manifests: Annotated[list[Path], typer.Argument(help="JSONL manifests of clips.")],
    split: Annotated[str, typer.Option(help="Rows whose queries are asked.")] = "val",
    kind: Annotated[str, typer.Option(help="Only queries of this kind, e.g. paraphrase.")] = "",
    blank: Annotated[
        float, typer.Option(min=0, max=1, help="Share of clips whose metadata is taken away.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Chooses which clips are blanked.")] = 0,
    encoder: Annotated[
        Path | None, typer.Option(help="Bundle to score; default: the one that is shipped.")
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Score an encoder's retrieval: audio only, metadata only, and both."""
    from audiofuse.core.evaluation.clips import read_manifest, select_queries
    from audiofuse.core.evaluation.evaluation import encode_clips
    from audiofuse.core.evaluation.evaluation import evaluate as score
    from audiofuse.workers.commands.display import metrics_table

    clips = [clip for manifest in manifests for clip in read_manifest(manifest)]
    queries = select_queries(clips, split, kind)
    if not queries:
        raise ConfigurationError(f"no row of the split {split!r} has queries of this kind")
    model = _encoder_to_score(encoder)
    progress = partial(track, console=Console(stderr=True), description="listening")
    gallery = encode_clips(model, progress(clips))
    for clip, error in gallery.rejected:
        typer.echo(f"left out: {clip.path}: {error}", err=True)
    metrics = {
        name: each.as_dict() for name, each in score(model, gallery, queries, blank, seed).items()
    }
    title = f"{len(queries)} queries, {len(gallery.clips)} clips"
    if as_json:
        print_json({"queries": len(queries), "clips": len(gallery.clips), "metrics": metrics})
    else:
        console.print(metrics_table(title, metrics))


def _encoder_to_score(bundle: Path | None) -> "Encoder":
    from audiofuse.core.bundles.bundle import load_bundle
    from audiofuse.core.encoder.starting import default_encoder

    return load_bundle(bundle) if bundle else default_encoder()


@encoder_cli.command("start")
def encoder_start(
    out: Annotated[Path, typer.Option(help="Folder in which the bundle's folder is made.")],
    audio: Annotated[
        str,
        typer.Option(help="EfficientAT checkpoint: a released name (mn10_as), a file, or a URL."),
    ] = "",
    text: Annotated[
        str, typer.Option(help="BERT: a Hugging Face id, e.g. bert-base-uncased, or a folder.")
    ] = "",
    *,
    live: Annotated[
        bool, typer.Option("--live", help="Name it as the live one in OUT/live.json.")
    ] = False,
) -> None:
    """Make the bundle to begin with: the default encoder, trained, as the product ships it.

    With --audio or --text it is a starting encoder instead: any two pretrained towers, nothing
    trained. The checkpoint and the AudioSet class names are looked for in AUDIOFUSE_PRETRAINED,
    else downloaded.
    """
    from audiofuse.core.bundles.bundle import save_bundle
    from audiofuse.core.encoder import starting

    if audio or text:
        encoder = starting.from_pretrained(
            Settings(), audio or starting.SHIPPED_CHECKPOINT, text or starting.minilm()
        )
        bundle = save_bundle(encoder, out, starting.NAME, starting.CARD)
    else:
        encoder, card = starting.default_encoder(), starting.default_card()
        bundle = save_bundle(encoder, out, starting.DEFAULT_NAME, card)
    if live:
        (out / "live.json").write_text(json.dumps({"version": bundle.name}) + "\n")
    typer.echo(bundle)


@bundle_cli.command("inspect")
def bundle_inspect(path: Bundle, *, as_json: Json = False) -> None:
    """Verify a bundle and show its version, files, parameters, configuration and metrics."""
    from audiofuse.core.bundles.manifest import inspect_bundle
    from audiofuse.workers.commands.display import facts_table

    facts = inspect_bundle(path)
    if as_json:
        print_json(facts.as_dict())
        return
    files = {name: f"{size:,} bytes" for name, size in facts.files.items()}
    parameters = {part: f"{count:,}" for part, count in facts.parameters.items()}
    console.print(
        facts_table(facts.version, files | {"total": f"{facts.size:,} bytes"}),
        facts_table("parameters", parameters),
        facts_table("configuration", facts.config),
        facts_table("metrics", facts.metrics) if facts.metrics else "no metrics",
    )


@bundle_cli.command("verify")
def bundle_verify(path: Bundle) -> None:
    """Check every file of a bundle against its manifest."""
    from audiofuse.core.bundles.manifest import bundle_version, verify_bundle

    manifest = verify_bundle(path)
    typer.echo(f"{bundle_version(path)}: {len(manifest.files)} files, as its manifest says")


@bundle_cli.command("export-query")
def bundle_export_query(
    path: Bundle,
    out: Annotated[Path, typer.Option(help="The folder to make.")],
) -> None:
    """Copy out the query tower, which fastembed loads: for asking without torch (README)."""
    from audiofuse.core.bundles.manifest import copy_query_tower

    copy_query_tower(path, out)
    typer.echo(out)


@cli.command()
def worker() -> None:
    """Run a worker: take keys from the queue and sync them, until SIGTERM."""
    celery = ["-m", "celery", "--quiet", "-A", "audiofuse.workers.indexing.app"]
    celery += ["worker", "--without-gossip", "--without-mingle"]
    os.execv(sys.executable, [sys.executable, *celery])  # noqa: S606 - it becomes this process


@cli.command()
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
    from audiofuse.workers.intake.build import build_intake

    current = _begin("intake")
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


@cli.command()
def reconcile(
    prefix: Prefix = "",
    every: Annotated[
        float | None,
        typer.Option(
            parser=seconds, metavar="DURATION", help="Do it now and then so often: 90s, 6h, 1d."
        ),
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compare only; queue nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare bucket and index, and queue what differs on the backfill lane.

    When 5,000 wait there it waits for the workers. Stop it whenever you like: the next run finds
    what is left.
    """
    from audiofuse.workers.commands.display import Bars, facts_table
    from audiofuse.workers.repair import backfill as work

    current = Settings()
    if every and dry_run:
        raise typer.BadParameter("--every queues what it finds; --dry-run queues nothing")
    if every:
        work.keep_reconciled(_begin("reconcile"), prefix, every)
    with Bars() as bars:
        run = work.reconcile(current, prefix, bars.over, dry_run=dry_run)
    if as_json:
        print_json({"seconds": round(run.seconds, 3), "queued": not dry_run, **run.found})
        return
    console.print(facts_table(f"compared in {run.seconds:.1f} s", run.found))
    what = "nothing was queued" if dry_run else "they are queued"
    console.print(f"{run.differing} objects differ; {what}")


@cli.command()
def backfill(
    prefix: Prefix = "",
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Queue every sound, also what agrees or was rejected.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the queue until all is done.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Index a bucket that has sounds in it, and follow the work to its end.

    Queues what reconcile finds, never more than 5,000 ahead of the workers. Ctrl-C stops the
    watching, not the work: what is queued is worked on, and the next run finds the rest.
    """
    from audiofuse.workers.commands.display import Bars
    from audiofuse.workers.repair.backfill import LaneFeed
    from audiofuse.workers.repair.reconcile import Finding, open_comparison
    from audiofuse.workers.telemetry.names import Lane

    current = Settings()
    handover = LaneFeed(current, Lane.BACKFILL)
    with Bars() as bars, open_comparison(current, prefix, bars.over) as comparison:
        found = comparison.run.found
        total = sum(found.values()) if everything else comparison.run.differing
        task = bars.add_task("indexing", total=total)
        try:
            for _ in handover.queue(comparison.keys(*(Finding if everything else ()))):
                bars.update(task, completed=handover.done)
            for _ in handover.follow() if wait else ():
                bars.update(task, completed=handover.done)
        except KeyboardInterrupt:
            bars.stop()
            wait = False
        bars.update(task, completed=handover.done)
    if as_json:
        print_json({"found": found, "total": total, "queued": handover.queued})
    elif wait:
        console.print(f"all {total} are done; audiofuse dead list tells what was rejected")
    else:
        console.print(f"{handover.queued} of {total} are queued, and are worked on without this")
    if handover.queued < total:
        raise AudiofuseError("not all is queued yet; run it again for the rest")


@cli.command()
def exporter() -> None:
    """Tell Prometheus what belongs to the whole deployment, until SIGTERM: deploy/metrics.md.

    It asks queue, index, bucket and registry at each scrape of AUDIOFUSE_METRICS_LISTEN. One is
    enough for a deployment.
    """
    from audiofuse.workers.deployment.exporter import tell_of

    current = _begin("exporter")
    if not current.metrics_listen:
        raise ConfigurationError(f"{PREFIX}METRICS_LISTEN is not set: where should it listen?")
    tell_of(current)
    threading.Event().wait()


@cli.command()
def serve(
    port: Port = 7700,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for other machines.")
    ] = "127.0.0.1",
    *,
    is_open: Annotated[
        bool, typer.Option("--open", help="Let other machines ask without a key.")
    ] = False,
) -> None:
    """Run the query service, until SIGTERM."""
    from audiofuse.workers.service.app import check_exposure, running

    current = _begin("search")
    check_exposure(host, current, is_open=is_open)
    with running(current) as app:
        _serve(app, port, host)


@cli.command()
def serve_index(port: Port = 6333) -> None:
    """Own an embedded Qdrant under AUDIOFUSE_HOME and serve it to this machine's processes."""
    from audiofuse.core.index.embedded import create_app
    from audiofuse.core.index.engine import Engine

    current = _begin("index")
    if current.qdrant_api_key is None:
        raise ConfigurationError(f"set {PREFIX}QDRANT_API_KEY: whoever has it may change the index")
    with closing(Engine(current.home / "index")) as engine:
        _serve(create_app(engine, current.qdrant_api_key.get_secret_value()), port)


def _begin(process: str) -> Settings:
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
        app, host=host, port=port, server_header=False, log_config=None, log_level="warning"
    )


def main() -> None:
    """Run a command; expected errors become one line and an exit code."""
    try:
        cli()
    except (ConfigurationError, QueryError) as error:
        _fail(str(error), USAGE)
    except ValidationError as error:
        _fail("\n".join(_explain_settings(error)), USAGE)
    except (AudiofuseError, RedisError) as error:
        _fail(str(error), FAILURE)


def _explain_settings(error: ValidationError) -> list[str]:
    return [
        f"{PREFIX}{str(each['loc'][0]).upper()}: {each['msg']}"
        for each in error.errors(include_url=False, include_input=False)
    ]


def _fail(message: str, code: int) -> None:
    typer.echo(f"audiofuse: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
