"""Who is asked for metrics, and whom alerts reach: in compose, and by Prometheus's operator."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import (
    DEPLOY,
    Manifest,
    build,
    containers,
    copied,
    foreign_kinds,
    of_kind,
    parse,
    selected,
)

APPLIED_LIMIT = 256 * 1024  # bytes of what `kubectl apply` notes of it in an annotation


@pytest.fixture(scope="module")
def built() -> str:
    """Return what kustomize builds for monitoring."""
    return build(DEPLOY / "kubernetes" / "monitoring")


@pytest.fixture(scope="module")
def manifests(built: str) -> list[Manifest]:
    """Return the same, parsed."""
    return parse(built)


def test_kubernetes_takes_it(built: str, tmp_path: Path) -> None:
    """Kubernetes knows every field of every object but the two that the operator brings."""
    unknown = foreign_kinds(built, tmp_path)
    assert set(unknown) == {"PodMonitor", "PrometheusRule"}


def test_prometheus_operator_takes_it(manifests: list[Manifest]) -> None:
    """Both objects are such, and no field of them is lost on the way to the operator."""
    from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule

    for model in (PodMonitor, PrometheusRule):
        (given,) = of_kind(manifests, model.__name__).values()
        understood = model.model_validate(given).model_dump(by_alias=True, exclude_none=True)
        assert _lost(given["spec"], understood["spec"]) == []


def _lost(given: Any, understood: Any) -> list[str]:
    """Return the names of fields that were given and not understood."""
    if isinstance(given, dict):
        return [
            name
            for key, value in given.items()
            for name in (_lost(value, understood[key]) if key in understood else [key])
        ]
    if isinstance(given, list):
        return [name for pair in zip(given, understood, strict=True) for name in _lost(*pair)]
    return []


def test_rules_are_prometheus_own(manifests: list[Manifest]) -> None:
    """Every group of every file of rules is in the object, as it is; else: make dashboards."""
    (rule,) = of_kind(manifests, "PrometheusRule").values()
    files = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    assert rule["spec"]["groups"] == groups


def test_dashboards_are_grafanas_own(manifests: list[Manifest]) -> None:
    """Every dashboard is in a config map that the sidecar finds and kubectl has room for."""
    (given,) = of_kind(manifests, "ConfigMap").values()
    files = {path.name: path.read_text() for path in (DEPLOY / "grafana/dashboards").iterdir()}
    assert given["data"] == files
    assert given["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert len(json.dumps(given)) < APPLIED_LIMIT


def test_whoever_tells_metrics_is_asked(manifests: list[Manifest], tmp_path: Path) -> None:
    """The monitor finds just the pods with the port ``metrics``, and their kind is their job."""
    deployment = parse(build(copied(tmp_path) / "demo"))
    (monitor,) = of_kind(manifests, "PodMonitor").values()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    found = selected(deployment, monitor["spec"]["selector"])
    telling = {
        name
        for name, container in containers(deployment)
        if endpoint["port"] in {each["name"] for each in container.get("ports", ())}
    }
    assert telling == {"worker", "intake", "search", "exporter"}
    assert telling <= found
    assert monitor["spec"]["jobLabel"] == "app.kubernetes.io/component"
    namespaces = {each["metadata"]["namespace"] for each in (*manifests, *deployment[1:])}
    assert namespaces == {"audiofuse"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Return the services of docker-compose.yml as they are written."""
    services: dict[str, Any] = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())[
        "services"
    ]
    return services


def test_prometheus_asks_storage_and_index(services: dict[str, Any]) -> None:
    """Both are asked at the port where they tell, the index with a key that Prometheus is shown."""
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    asked = {
        each["job_name"]: each["static_configs"][0]["targets"]
        for each in prometheus["scrape_configs"][1:]
    }
    assert asked == {"qdrant": ["qdrant:6333"], "s3": ["s3:9327"]}
    key = prometheus["scrape_configs"][1]["authorization"]["credentials_file"]
    shown = {f"/run/secrets/{each}" for each in services["prometheus"]["secrets"]}
    assert {key} == shown


def test_of_storages_metrics_server_nothing_but_metrics_is_told(
    services: dict[str, Any],
) -> None:
    """It serves a profiler, too, so it stays on the loopback; one fixed question is handed on."""
    (command,) = services["s3"]["command"]
    inner = re.findall(r"-metricsPort=(\d+)", command)
    assert "-metricsIp" not in command  # as -ip.bind: the loopback
    handed_on = re.findall(r"cat > metrics.sh <<'END'\n(.+?)\nEND", command, re.DOTALL)
    assert re.findall(r"http://\S+", *handed_on) == [f"http://127.0.0.1:{inner[0]}/metrics"]
    assert command.index("nc -ll -p 9327 -e sh metrics.sh") < command.index("exec weed")


def test_alerts_reach_alertmanager_and_it_a_receiver(services: dict[str, Any]) -> None:
    """Prometheus knows it by its name and port; each route's receiver is there; files are shown."""
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (known,) = prometheus["alerting"]["alertmanagers"]
    (discovery,) = known["dns_sd_configs"]
    assert (discovery["names"], discovery["port"]) == (["alertmanager"], 9093)
    told = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text())
    routes = [told["route"], *told["route"]["routes"]]
    assert {each["receiver"] for each in routes} == {each["name"] for each in told["receivers"]}
    (receiver,) = told["receivers"]
    (secret,) = services["alertmanager"]["secrets"]
    (webhook,) = receiver["webhook_configs"]
    assert webhook["url_file"] == f"/run/secrets/{secret}"
    alerts = yaml.safe_load((DEPLOY / "prometheus/rules/alerts.yml").read_text())["groups"]
    names = {rule["alert"] for group in alerts for rule in group["rules"]}
    (rule,) = told["inhibit_rules"]
    for kept_quiet in re.findall(r"[\w.*]+", rule["target_matchers"][0].partition("=~")[2]):
        assert [name for name in names if re.fullmatch(kept_quiet, name)], kept_quiet
