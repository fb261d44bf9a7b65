"""deploy/kubernetes/monitoring: what Prometheus's operator and Grafana get is deploy's own."""

import json
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
