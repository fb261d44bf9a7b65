"""Dashboards: as generated, and every panel's query has data on a real Prometheus under load."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from bundles import saved_bundle

from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.evaluation.scorecards import MAP, Figure, Score, open_scorecards
from audiofuse.core.model.config import TINY
from audiofuse.core.settings import Settings
from audiofuse.workers.deployment.local import LocalDeployment, Part, free_port
from audiofuse.workers.repair.backfill import reconcile
from audiofuse.workers.rollout.operator import Operator
from audiofuse.workers.service.client import ask

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SOUNDS = ROOT / "examples" / "sounds"
BOARDS = DEPLOY / "grafana" / "dashboards"
RULES = DEPLOY / "prometheus" / "rules"
SHORT = ("animals/owl.wav", "animals/crow.flac", "home/typing.mp3", "music/bell.opus")
SCRAPE = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
VARIABLES = {"$__rate_interval": "15s", "$instance": ".*"}
STEP_S = 2
EMPTY = {  # what this machine, or a deployment that is well, has no data for
    ("worker", "GPU memory"): "no GPU here",
    ("overview", "What is failing?"): "nothing is",
}
ROW = re.compile(r"\| `(audiofuse_\w+)` \| (\w+) \|(.*?)\|")
NAMED = re.compile(r"\b(audiofuse[_:][\w:]+)(?:\{([^}]*)\})?")
OTHERS = {"le", "job", "instance"}  # labels of histograms and of Prometheus itself

needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason="needs Prometheus")

Eventually = Callable[..., Any]
Query = Callable[[dict[str, Any]], list[Any]]


def _panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(BOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            yield path.stem, panel


def _expressions() -> Iterator[tuple[str, str]]:
    """Yield every query of panels and rules, with where it stands."""
    for board, panel in _panels():
        for target in panel["targets"]:
            yield f"{board}: {panel['title']}", target["expr"]
    for path in RULES.glob("*.yml"):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                yield rule.get("alert") or rule["record"], rule["expr"]


def test_committed_dashboards_are_what_is_generated(tmp_path: Path) -> None:
    """`make dashboards` would change nothing."""
    generate = [sys.executable, str(DEPLOY / "grafana" / "dashboards.py"), str(tmp_path)]
    subprocess.run(generate, check=True)
    generated = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert generated == {path.name: path.read_text() for path in BOARDS.iterdir()}


def test_queries_name_metrics_and_labels_that_exist() -> None:
    """Each metric of a panel or rule is in deploy/metrics.md with its labels, or is recorded."""
    rows = ROW.findall((DEPLOY / "metrics.md").read_text())
    labels = {name: set(re.findall(r"`(\w+)`", found)) | OTHERS for name, _, found in rows}
    recorded = {
        rule["record"]
        for group in yaml.safe_load((RULES / "recording.yml").read_text())["groups"]
        for rule in group["rules"]
    }
    for where, expr in _expressions():
        for name, matchers in NAMED.findall(expr):
            metric = re.sub(r"_(bucket|sum|count)$", "", name)
            if name not in recorded:
                used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
                assert used <= labels.get(metric, labels.get(name, set())), (where, name)
                assert metric in labels or name in labels, (where, name)


def test_a_panel_says_what_it_shows() -> None:
    """Each has a description and a unit, and no two panels of a dashboard have one title."""
    titles = [(board, panel["title"]) for board, panel in _panels()]
    assert len(titles) == len(set(titles))
    for board, panel in _panels():
        assert panel["description"], (board, panel["title"])
        assert panel["fieldConfig"]["defaults"]["unit"], (board, panel["title"])


def test_the_runbook_names_panels_that_exist() -> None:
    """What it tells to look at is on a dashboard."""
    titles = {panel["title"] for _, panel in _panels()}
    runbook = re.sub(r"\s+", " ", (DEPLOY / "runbook.md").read_text().split("```")[-1])
    named = set(re.findall(r'"([A-Z][^"]+)"', runbook))
    assert named
    assert named <= titles


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Encoder
) -> Iterator[LocalDeployment]:
    """Run a whole deployment."""
    root = tmp_path_factory.mktemp("dashboards")
    (root / "bucket").mkdir()
    bundle = saved_bundle(tiny_encoder, root, "tiny", "")
    settings = Settings(
        home=root / "home", bucket=str(root / "bucket"), encoder=bundle, batch_s=40, decoders=1
    )
    with LocalDeployment(settings) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(
    deployment: LocalDeployment, tmp_path_factory: pytest.TempPathFactory, eventually: Eventually
) -> Iterator[str]:
    """Run Prometheus with the real rules on all processes of the deployment, return its URL."""
    root = tmp_path_factory.mktemp("prometheus")
    targets = [{"files": [str(deployment.targets)]}]
    config = {
        "global": SCRAPE,
        "rule_files": [f"{RULES}/*.yml"],
        "scrape_configs": [{"job_name": "audiofuse", "file_sd_configs": targets}],
    }
    (root / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        "prometheus", f"--config.file={root}/prometheus.yml", f"--storage.tsdb.path={root}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    server = Part("prometheus", command, os.environ, root / "log")
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: _is_ready(url))
        eventually(lambda: _sum(url, "sum(audiofuse_build_info)") >= 5)
        yield url
    finally:
        server.stop()


def _ask(url: str, path: str, **parameters: Any) -> list[Any]:
    answer = httpx.get(f"{url}/api/v1/{path}", params=parameters, timeout=20)
    assert answer.is_success, answer.text
    return list(answer.json()["data"]["result"])


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=5).is_success
    except httpx.TransportError:
        return False


def _sum(url: str, expr: str) -> float:
    return sum(float(each["value"][1]) for each in _ask(url, "query", query=expr))


@pytest.fixture(scope="module")
def query(deployment: LocalDeployment, prometheus: str, eventually: Eventually) -> Query:
    """Put load on the deployment; return what asks what a panel asks."""
    began, settings = time.time(), deployment.settings
    bucket = Path(settings.bucket)
    for number in range(3):
        for sound in SHORT:
            shutil.copyfile(SOUNDS / sound, bucket / f"{number}-{Path(sound).name}")
        (bucket / f"{number}-empty.wav").touch()
        ask(settings.search_url, "an owl", 3)
    eventually(lambda: _sum(prometheus, "sum(audiofuse_items)") == 3 * len(SHORT))
    _begin_rollout(settings)
    (bucket / "late.wav").write_bytes((SOUNDS / SHORT[0]).read_bytes())
    for _ in range(3):
        ask(settings.search_url, "a crow", 3)
    reconcile(settings)
    expected = 'audiofuse_items{role="candidate"} == bool 13'
    eventually(lambda: _sum(prometheus, expected) == 1)
    time.sleep(3)  # each rule and each rate has its second sample

    def answer(target: dict[str, Any]) -> list[Any]:
        expr, end = target["expr"], time.time()
        for variable, value in VARIABLES.items():
            expr = expr.replace(variable, value)
        if target.get("instant"):
            return [[each["value"]] for each in _ask(prometheus, "query", query=expr)]
        found = _ask(prometheus, "query_range", query=expr, start=began, end=end, step=STEP_S)
        return [each["values"] for each in found]

    return answer


def _begin_rollout(settings: Settings) -> None:
    """Build a second version beside the live one, as `audiofuse rollout start` does."""
    registry = open_registry(settings)
    assert settings.encoder
    registry.publish(settings.encoder)
    candidate = Encoder.random(TINY, seed=1)
    version = registry.publish(save_bundle(candidate, settings.home, "other", ""))
    operator = Operator(settings)
    figures = {"hybrid": {MAP: Figure(value=0.5, low=0.4, high=0.6)}}
    score = Score(asked="val", data="d", queries=9, sounds=8, figures=figures)
    for each in (version, operator.rollout.live):
        open_scorecards(settings).add(each, [score])
    operator.start(version, lambda: candidate)
    assert operator.build(lambda *_: None)


@needs_prometheus
@pytest.mark.timeout(180)
@pytest.mark.parametrize("board", ["overview", "worker", "rollout"])
def test_every_panel_has_data(query: Query, board: str) -> None:
    """Real processes under load have something to show in each panel, but for those excused."""
    panels = [panel for name, panel in _panels() if name == board]
    empty = {
        panel["title"]
        for panel in panels
        if not all(_has_data(query(target)) for target in panel["targets"])
    }
    assert empty == {title for name, title in EMPTY if name == board}


def _has_data(found: list[Any]) -> bool:
    return any(not math.isnan(float(value)) for values in found for _, value in values)


@needs_prometheus
def test_every_rule_is_loaded_and_works(prometheus: str, query: Query) -> None:
    """Prometheus has evaluated all rules without an error."""
    del query
    answer = httpx.get(f"{prometheus}/api/v1/rules", timeout=20).json()["data"]["groups"]
    rules = [rule for group in answer for rule in group["rules"]]
    names = {rule["name"] for rule in rules}
    for path in RULES.glob("*.yml"):
        assert set(re.findall(r"(?:alert|record): (\S+)", path.read_text())) <= names
    assert {rule["health"] for rule in rules} == {"ok"}
