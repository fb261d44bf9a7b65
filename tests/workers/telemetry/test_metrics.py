"""Metrics, logs and traces of real processes, and the table in deploy/metrics.md."""

import gzip
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from bundles import saved_bundle
from fastapi import FastAPI, Request
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from pydantic import SecretStr

from audiofuse.core.bundles.document import Phase
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import Reason
from audiofuse.core.settings import PREFIX, Settings, environment
from audiofuse.workers.deployment.exporter import GAUGES, Exporter, Role
from audiofuse.workers.deployment.exporter import Part as Asked
from audiofuse.workers.deployment.local import LocalDeployment
from audiofuse.workers.repair.backfill import reconcile
from audiofuse.workers.repair.findings import Finding
from audiofuse.workers.service.client import ask
from audiofuse.workers.telemetry.metrics import (
    EVENT_OUTCOMES,
    REGISTRIES,
    SYNC_OUTCOMES,
    Failure,
    Process,
    Split,
    Stage,
)
from audiofuse.workers.telemetry.names import Lane, Outcome, Source

ROOT = Path(__file__).parents[3]
SOUNDS = ROOT / "examples" / "sounds"
SHORT = ("animals/owl.wav", "animals/crow.flac", "home/typing.mp3", "music/bell.opus")
ROW = re.compile(r"\| `(audiofuse_\w+)` \| (\w+) \|(.*?)\| (.*?) \| .+ \|")
SECRET = "s3cr3t-of-the-deployment"
ABSENT = {  # what this machine, or a deployment without trouble, has none of
    "audiofuse_device_memory_bytes",
    "audiofuse_version_info",
    "audiofuse_broker_memory_limit_bytes",
    "audiofuse_rollout_step_timestamp_seconds",
    "audiofuse_member_duration_seconds",
    "audiofuse_quality_ratio",
}

Scrape = Callable[[str], dict[str, list[Sample]]]
Eventually = Callable[..., Any]


def _table() -> dict[tuple[str, Process], tuple[str, tuple[str, ...]]]:
    """Return type and labels of each metric in the table, by its name and process."""
    rows = ROW.findall((ROOT / "deploy" / "metrics.md").read_text())
    return {
        (name, process): (kind, tuple(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, where in rows
        for process in (Process if where == "all" else map(Process, where.split(", ")))
    }


def _defined() -> dict[tuple[str, Process], tuple[str, tuple[str, ...]]]:
    collectors = [
        (process, collector)
        for process, registry in REGISTRIES.items()
        for collector in registry._collector_to_names
    ]
    found = {
        (each.name, process): (each.type, getattr(collector, "_labelnames", ("version",)))
        for process, collector in collectors
        if not isinstance(collector, Exporter)
        for each in collector.describe()
    }
    asked = {
        (f"audiofuse_{name}", Process.EXPORTER): ("gauge", tuple(labels))
        for name, (_, labels) in GAUGES.items()
    }
    return {
        (f"{name}_total" if kind == "counter" else name, process): (kind, tuple(labels))
        for (name, process), (kind, labels) in (found | asked).items()
        if name.startswith("audiofuse_")
    }


def test_the_table_tells_what_the_code_defines() -> None:
    """Every metric is in the table with its type, labels and process, and none besides."""
    assert _table() == _defined()


@pytest.mark.parametrize(
    ("label", "known"),
    [
        ("`lane`", Lane),
        ("`outcome` of a sync", SYNC_OUTCOMES),
        ("`outcome` of an event", EVENT_OUTCOMES),
        ("`stage`", Stage),
        ("`error`", Failure),
        ("`cause`", Split),
        ("`reason`", Reason),
        ("`source`", Source),
        ("`part`", Asked),
        ("`role`", Role),
        ("`phase`", Phase),
        ("`finding`", Finding),
        ("`process`", Process),
    ],
)
def test_the_table_tells_every_value_of_a_label(label: str, known: Iterable[str]) -> None:
    """Whoever writes a query finds each value of a label in the table, and none besides."""
    text = (ROOT / "deploy" / "metrics.md").read_text()
    (values,) = re.findall(rf"^\| {label} \| (.+) \|$", text, re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)`", values)) == set(map(str, known))


def test_every_outcome_of_a_sync_is_counted() -> None:
    """Whatever a sync may end in has its series from the start."""
    assert {str(outcome) for outcome in Outcome} <= set(SYNC_OUTCOMES)


@pytest.fixture(scope="module")
def traces() -> list[bytes]:
    """Return what the processes of the deployment tell of their traces, as it comes."""
    return []


@pytest.fixture(scope="module")
def collector(
    serving: Callable[[FastAPI], AbstractContextManager[str]], traces: list[bytes]
) -> Iterator[str]:
    """Run a collector of traces and return its URL."""
    app = FastAPI()

    @app.post("/v1/traces")
    async def collect(request: Request) -> None:
        body = await request.body()
        is_packed = request.headers.get("content-encoding") == "gzip"
        traces.append(gzip.decompress(body) if is_packed else body)

    with serving(app) as url:
        yield f"{url}/v1/traces"


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_encoder: Encoder,
    eventually: Eventually,
    collector: str,
) -> Iterator[LocalDeployment]:
    """Run a whole deployment for a bucket into which real sounds came, one of them empty.

    It logs as much as can be, traces everything, and every process knows every secret.
    """
    root = tmp_path_factory.mktemp("deployment")
    bundle = saved_bundle(tiny_encoder, root, "tiny", "")
    bucket = root / "bucket"
    bucket.mkdir()
    settings = Settings(
        home=root / "home", bucket=str(bucket), encoder=bundle,
        log_level="DEBUG", log_format="json", traces_url=collector,
        s3_secret_access_key=SecretStr(SECRET), webhook_token=SecretStr(SECRET),
    )  # fmt: skip
    with LocalDeployment(settings) as running:
        for name in SHORT:
            shutil.copyfile(SOUNDS / name, bucket / Path(name).name)
        (bucket / "empty.wav").touch()
        scrape = _scraper(running)
        eventually(lambda: _sum(scrape("worker"), "audiofuse_freshness_seconds_count") == 4)
        eventually(lambda: _sum(scrape("worker"), "audiofuse_rejections_total") == 1)
        (bucket / "owl.wav.json").write_text('{"title": "An owl"}')
        eventually(lambda: _sum(scrape("worker"), "audiofuse_freshness_seconds_count") == 5)
        reconcile(running.settings)
        yield running


@pytest.fixture(scope="module")
def scrape(deployment: LocalDeployment) -> Scrape:
    """Return what scrapes a process of the deployment: samples by name."""
    return _scraper(deployment)


def _urls(deployment: LocalDeployment) -> dict[str, str]:
    groups = json.loads(deployment.targets.read_text())
    return {each["labels"]["job"]: f"http://{each['targets'][0]}/metrics" for each in groups}


def _scraper(deployment: LocalDeployment) -> Scrape:
    urls = _urls(deployment)

    def scrape(process: str) -> dict[str, list[Sample]]:
        samples: dict[str, list[Sample]] = {}
        text = httpx.get(urls[process], timeout=20).raise_for_status().text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append(sample)
        return samples

    return scrape


def _sum(samples: dict[str, list[Sample]], name: str, **labels: str) -> float:
    return sum(
        sample.value for sample in samples.get(name, ()) if labels.items() <= sample.labels.items()
    )


@pytest.mark.timeout(180)
def test_every_process_tells_what_the_table_says(
    deployment: LocalDeployment, scrape: Scrape
) -> None:
    """After real uploads and a question each metric of the table has a series where it should."""
    ask(deployment.settings.search_url, "an owl", 3)
    told = {process: scrape(process) for process in _urls(deployment)}
    for (name, process), (kind, labels) in _table().items():
        if name in ABSENT or process not in told:
            continue
        found = told[process].get(f"{name}_count" if kind == "histogram" else name)
        assert found, f"{process} tells no {name}"
        assert all(set(sample.labels) == set(labels) for sample in found), name


def test_the_figures_are_those_of_what_was_done(scrape: Scrape) -> None:
    """Freshness counts the writes, batches are filled in (0, 1], and nothing is left to do."""
    worker, exporter, intake = scrape("worker"), scrape("exporter"), scrape("intake")
    created = _sum(worker, "audiofuse_syncs_total", outcome="created")
    assert created == 4
    assert _sum(worker, "audiofuse_syncs_total", outcome="re-fused") == 1
    assert _sum(worker, "audiofuse_freshness_seconds_count", lane="live") == 5
    assert 0 < _sum(worker, "audiofuse_freshness_seconds_sum") < 5 * 60
    batches = _sum(worker, "audiofuse_batch_fill_ratio_count")
    assert 0 < _sum(worker, "audiofuse_batch_fill_ratio_sum") <= batches
    assert 0 <= _sum(worker, "audiofuse_batch_padding_ratio_sum") < batches
    assert _sum(worker, "audiofuse_audio_seconds_total") > 4
    assert _sum(worker, "audiofuse_device_busy_seconds_total") > 0
    assert _sum(worker, "audiofuse_device_info", device="cpu", asked="auto") == 1
    assert _sum(worker, "audiofuse_in_hand_messages") == 0
    assert abs(_sum(worker, "audiofuse_heartbeat_timestamp_seconds") - time.time()) < 30
    for stage in ("look", "fetch", "decode", "encode", "fuse", "get", "upsert"):
        assert _sum(worker, "audiofuse_stage_duration_seconds_count", stage=stage) > 0, stage
    assert _sum(worker, "audiofuse_stage_duration_seconds_count", stage="decode") == 5
    assert _sum(worker, "audiofuse_stage_errors_total", stage="decode", error="rejected") == 1
    assert _sum(worker, "audiofuse_rejections_total", reason="empty") == 1
    assert _sum(exporter, "audiofuse_dead_letters", reason="empty") == 1
    assert _sum(exporter, "audiofuse_dead_letters") == 1
    assert _sum(exporter, "audiofuse_backlog_messages") == 0
    assert _sum(exporter, "audiofuse_backlog_oldest_seconds") == 0
    assert _sum(exporter, "audiofuse_items", role="live") == 4
    assert _sum(exporter, "audiofuse_items_without_text", role="live") == 3
    assert _sum(exporter, "audiofuse_coverage_ratio", role="live") == 1
    assert _sum(exporter, "audiofuse_reconcile_items", finding="agreed") == 4
    assert _sum(exporter, "audiofuse_reconcile_differing_runs") == 0
    assert _sum(exporter, "audiofuse_rollout_phase", phase="none") == 1
    assert _sum(exporter, "audiofuse_up") == 4
    events = _sum(intake, "audiofuse_events_total", source="folder", outcome="handed_over")
    assert events >= 6


def test_questions_are_measured_by_route_and_status(
    deployment: LocalDeployment, scrape: Scrape
) -> None:
    """Each answer is counted under its route and status; what nobody serves has one name."""
    url = deployment.settings.search_url
    before = scrape("search")
    for path in ("/v1/search?q=an owl", "/v1/search?q=", "/v1/audio/owl.wav", "/nobody", "/no/one"):
        httpx.get(url + path, timeout=20)
    after = scrape("search")

    def more(**labels: str) -> float:
        name = "audiofuse_query_duration_seconds_count"
        return _sum(after, name, **labels) - _sum(before, name, **labels)

    assert more(route="/v1/search", status="200") == 1
    assert more(route="/v1/search", status="422") == 1
    assert more(route="other", status="404") == 2
    assert more(route="/v1/audio/{key:path}") == 1
    assert more() == 5
    reads = "audiofuse_query_batch_size_count"
    assert _sum(after, reads) == _sum(before, reads) + 1


def test_what_is_away_is_told_and_its_series_are_missing(
    deployment: LocalDeployment, scrape: Scrape, eventually: Eventually
) -> None:
    """An index that hangs is down within the time-out, and nobody claims that it has no items."""
    index = next(part.process for part in deployment._parts if part.name == "index")
    index.send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        exporter = scrape("exporter")
        assert time.monotonic() - started < 10
    finally:
        index.send_signal(signal.SIGCONT)
    assert _sum(exporter, "audiofuse_up", part="index") == 0
    assert _sum(exporter, "audiofuse_up") == 3
    assert "audiofuse_items" not in exporter
    assert "audiofuse_coverage_ratio" not in exporter
    assert _sum(exporter, "audiofuse_dead_letters") == 1
    eventually(lambda: _sum(scrape("exporter"), "audiofuse_up") == 4)


def test_no_process_tells_a_secret(deployment: LocalDeployment) -> None:
    """At DEBUG, after work and an outage, no log and no metric has a password or a key in it."""
    values = environment(deployment.settings)
    passwords = [
        urlsplit(values[PREFIX + "BROKER_URL"]).password,
        values[PREFIX + "QDRANT_API_KEY"],
    ]
    logs = sorted((deployment.settings.home / "logs").glob("*.log"))
    said = [log.read_text() for log in logs]
    told = [httpx.get(url, timeout=20).text for url in _urls(deployment).values()]
    assert len(said) >= 6
    for secret in [SECRET, *passwords]:
        assert secret
        assert not [text for text in said + told if secret in text]


def test_every_line_of_the_logs_is_an_object(deployment: LocalDeployment) -> None:
    """With ``log_format`` json whoever reads the logs of a process needs no other parser."""
    home = deployment.settings.home
    lines = [
        json.loads(line)
        for process in _urls(deployment)
        for line in (home / "logs" / f"{process}.log").read_text().splitlines()
    ]
    items = [line for line in lines if line.get("outcome") == "created"]
    assert sorted(line["key"] for line in items) == sorted(Path(name).name for name in SHORT)
    assert all(line["version"].startswith("tiny-") for line in items)
    assert {line["lane"] for line in items} == {"live"}


def test_processes_go_on_with_each_others_traces(
    deployment: LocalDeployment, traces: list[bytes], eventually: Eventually
) -> None:
    """What intake began the worker ends, in one trace, and a collector hears of both."""
    del deployment
    begun, ended = eventually(lambda: _found(traces))
    assert ended <= begun


def _found(traces: list[bytes]) -> tuple[set[bytes], set[bytes]] | None:
    """Return the traces in which intake told of an event, and those with an upsert by a worker."""
    found: dict[tuple[str, str], set[bytes]] = {}
    for body in traces.copy():
        for told in ExportTraceServiceRequest.FromString(body).resource_spans:
            (service,) = (
                each.value.string_value
                for each in told.resource.attributes
                if each.key == "service.name"
            )
            for each in (span for scope in told.scope_spans for span in scope.spans):
                found.setdefault((service, each.name), set()).add(each.trace_id)
    begun = found.get(("audiofuse-intake", "event"), set())
    ended = found.get(("audiofuse-worker", "upsert"), set())
    return (begun, ended) if len(begun) >= 6 and len(ended) == 5 else None


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs Prometheus's promtool")
def test_promtool_finds_nothing_to_blame(deployment: LocalDeployment) -> None:
    """Names, types and help of what each process tells follow Prometheus's conventions."""
    for process, url in _urls(deployment).items():
        checked = subprocess.run(
            ["promtool", "check", "metrics"],
            input=httpx.get(url, timeout=20).content, capture_output=True, check=False,
        )  # fmt: skip
        assert checked.returncode == 0, (process, checked.stderr.decode())
