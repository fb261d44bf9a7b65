"""deploy/kubernetes: valid for Kubernetes and KEDA, least rights, and true to the settings."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject

from audiofuse.core.settings import PREFIX, Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
BIN = Path(sys.executable).parent
OVERLAYS = ("cpu", "gpu")
SECRETS = {  # who gets which: only who needs it
    "audiofuse": {"worker", "intake", "search", "exporter", "reconcile"},
    "audiofuse-owner": {"begin"},
    "audiofuse-search": {"search"},
    "audiofuse-webhook": {"intake"},
}
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Manifest = dict[str, Any]


def _built(overlay: str, folder: Path = DEPLOY / "kubernetes") -> str:
    command = [BIN / "kubectl", "kustomize", folder / overlay]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=OVERLAYS)
def built(request: pytest.FixtureRequest) -> str:
    """Return what kustomize builds of each overlay."""
    return _built(request.param)


@pytest.fixture(scope="module")
def manifests(built: str) -> list[Manifest]:
    """Return the same, parsed."""
    return list(yaml.safe_load_all(built))


def _kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def _pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Yield name and pod template of everything that runs."""
    for each in manifests:
        spec = each.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield each["metadata"]["name"], spec["template"]


def test_kubernetes_takes_it(built: str, tmp_path: Path) -> None:
    """Every object is one that Kubernetes 1.37 knows, field by field; KEDA's alone it does not."""
    path = tmp_path / "built.yaml"
    path.write_text(built)
    command = [BIN / "kubernetes-validate", "--strict", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    unknown = re.findall(r"find schema for kind (\w+)", done.stdout + done.stderr)
    assert unknown == ["ScaledObject"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_image_that_is_named_is_everywhere(overlay: str, tmp_path: Path) -> None:
    """Where the overlay names a registry every pod runs that image, and none another."""
    folder = tmp_path / "kubernetes"
    shutil.copytree(DEPLOY / "kubernetes", folder)
    path = folder / overlay / "kustomization.yaml"
    given = yaml.safe_load(path.read_text())
    given["images"] = [{"name": "audiofuse", "newName": "registry.example/a", "newTag": "1.2.3"}]
    path.write_text(yaml.safe_dump(given))
    for _, pod in _pods(list(yaml.safe_load_all(_built(overlay, folder)))):
        for container in pod["spec"]["containers"]:
            assert container["image"] == "registry.example/a:1.2.3"


def test_keda_takes_it(manifests: list[Manifest]) -> None:
    """The scaled object is one, of the worker, and no field of it is lost on the way to KEDA."""
    (given,) = _kind(manifests, "ScaledObject").values()
    understood = ScaledObject.model_validate(given).model_dump(by_alias=True, exclude_none=True)
    assert given["spec"] == _common(given["spec"], understood["spec"])
    assert given["spec"]["scaleTargetRef"]["name"] in _kind(manifests, "Deployment")


def _common(given: Any, understood: Any) -> Any:
    """Return of what was given only what was understood."""
    if isinstance(given, dict):
        return {key: _common(given[key], understood[key]) for key in given if key in understood}
    if isinstance(given, list):
        return [_common(*pair) for pair in zip(given, understood, strict=True)]
    return understood


def test_it_is_scaled_by_metrics_that_exist(manifests: list[Manifest]) -> None:
    """Every name in the query is a metric of deploy/metrics.md; held messages count as waiting."""
    (scaled,) = _kind(manifests, "ScaledObject").values()
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    named = set(re.findall(r"audiofuse_\w+", query))
    table = (DEPLOY / "metrics.md").read_text()
    assert named
    assert not [name for name in named if f"| `{name}` |" not in table]
    assert "audiofuse_backlog_messages)" in query  # every state: no selector leaves one out


def test_every_pod_has_the_least_rights(manifests: list[Manifest]) -> None:
    """All run under the restricted standard, with a read-only root, limits, and no API token."""
    namespace = _kind(manifests, "Namespace")["audiofuse"]["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, pod in _pods(manifests):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"], name
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), name
            mounted = {each["name"] for each in container["volumeMounts"]}
            assert mounted == {each["name"] for each in spec["volumes"]}, name


def test_numerical_libraries_start_as_many_threads_as_are_allowed(
    manifests: list[Manifest],
) -> None:
    """Each container says its CPU limit to libraries that would count the node's CPUs."""
    for name, pod in _pods(manifests):
        for container in pod["spec"]["containers"]:
            given = {each["name"]: each.get("valueFrom") for each in container["env"]}
            for variable in THREADS:
                assert given[variable] == {"resourceFieldRef": {"resource": "limits.cpu"}}, name


def test_who_still_asks_a_pod_that_goes_is_answered(manifests: list[Manifest]) -> None:
    """What a service leads to goes on for some seconds after it was told to end."""
    pods = dict(_pods(manifests))
    for name in _kind(manifests, "Service"):
        (container,) = pods[name]["spec"]["containers"]
        assert 5 <= container["lifecycle"]["preStop"]["sleep"]["seconds"] <= 15, name


def test_only_what_begins_has_the_operators_account(manifests: list[Manifest]) -> None:
    """A role that writes, given to the job's account, is given to nothing else; both exist."""
    accounts = {name: pod["spec"]["serviceAccountName"] for name, pod in _pods(manifests)}
    assert {n for n, account in accounts.items() if account == "audiofuse-owner"} == {"begin"}
    assert set(accounts.values()) == _kind(manifests, "ServiceAccount").keys()


def test_it_may_be_applied_again(manifests: list[Manifest]) -> None:
    """A finished job, which Kubernetes does not let change, is gone a minute later."""
    jobs = _kind(manifests, "Job")
    assert jobs
    assert all(each["spec"]["ttlSecondsAfterFinished"] <= 60 for each in jobs.values())
    assert "kubectl -n audiofuse delete job begin" in (DEPLOY / "operations.md").read_text()


def test_no_comparison_hangs_for_ever(manifests: list[Manifest]) -> None:
    """Where one forbids the next, it is ended after a time."""
    for each in _kind(manifests, "CronJob").values():
        assert each["spec"]["concurrencyPolicy"] == "Forbid"
        assert each["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] <= 86400


def test_secrets_are_named_and_never_held(manifests: list[Manifest]) -> None:
    """No secret is in the files, and each goes only to those that need it."""
    assert not _kind(manifests, "Secret")
    users: dict[str, set[str]] = {}
    for name, pod in _pods(manifests):
        for container in pod["spec"]["containers"]:
            refs = [each["secretRef"] for each in container["envFrom"] if "secretRef" in each]
            given = [each.get("valueFrom", {}) for each in container.get("env", ())]
            refs += [each["secretKeyRef"] for each in given if "secretKeyRef" in each]
            for ref in refs:
                users.setdefault(ref["name"], set()).add(name)
    assert users == SECRETS


def test_operations_tells_how_to_make_every_secret() -> None:
    """The page has a command for each secret that a pod names, and its settings exist."""
    page = (DEPLOY / "operations.md").read_text()
    made = set(re.findall(r"create secret generic (\S+)", page))
    assert made == SECRETS.keys()


def test_every_setting_exists(manifests: list[Manifest]) -> None:
    """Each variable is a setting, with a value that it takes."""
    (settings,) = _kind(manifests, "ConfigMap").values()
    given = dict(settings["data"])
    for _, pod in _pods(manifests):
        for container in pod["spec"]["containers"]:
            literal = {each["name"]: each.get("value") for each in container.get("env", ())}
            given |= {name: value for name, value in literal.items() if value is not None}
            ours = {name.removeprefix(PREFIX) for name in literal if name.startswith(PREFIX)}
            assert {name.lower() for name in ours} <= Settings.model_fields.keys()
    names = {name.removeprefix(PREFIX).lower(): value for name, value in given.items()}
    assert names.keys() - {"tmpdir"} <= Settings.model_fields.keys()
    Settings(**names)


def test_ports_and_selectors_agree(manifests: list[Manifest]) -> None:
    """Services, budgets and policies select pods that exist, at ports that those have."""
    pods = dict(_pods(manifests))
    ports: dict[str, dict[int, str]] = {name: {} for name in pods}
    for name, pod in pods.items():
        for container in pod["spec"]["containers"]:
            ports[name] |= {p["containerPort"]: p["name"] for p in container.get("ports", ())}
    for name, service in _kind(manifests, "Service").items():
        assert service["spec"]["selector"]["app.kubernetes.io/component"] in pods
        (port,) = service["spec"]["ports"]
        assert ports[name][port["port"]] == port["targetPort"]
    for name, budget in _kind(manifests, "PodDisruptionBudget").items():
        assert budget["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/component": name}
        assert name in pods
    for name in ("search", "intake"):
        policy = _kind(manifests, "NetworkPolicy")[name]["spec"]
        assert policy["podSelector"]["matchLabels"] == {"app.kubernetes.io/component": name}
        assert policy["ingress"][0]["ports"][0]["port"] in ports[name]
    for name, pod in pods.items():
        labels = pod["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "audiofuse", name
        for container in pod["spec"]["containers"]:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                check = container.get(probe, {})
                asked = check.get("httpGet", check.get("tcpSocket"))
                assert asked is None or asked["port"] in ports[name].values(), name


def test_nobody_talks_to_anybody_unless_it_is_said(manifests: list[Manifest]) -> None:
    """One policy forbids everything to all pods; the rest open ports, none of them to the world."""
    policies = _kind(manifests, "NetworkPolicy")
    nobody = policies.pop("nobody")["spec"]
    assert nobody["podSelector"] == {}
    assert set(nobody["policyTypes"]) == {"Ingress", "Egress"}
    assert not {"ingress", "egress"} & nobody.keys()
    for name, policy in policies.items():
        for rule in policy["spec"].get("ingress", ()):
            assert rule["from"], name
        for rule in policy["spec"].get("egress", ()):
            assert rule["ports"], name
            for to in rule["to"]:
                assert "169.254.169.254/32" in to.get("ipBlock", {}).get(
                    "except", ["169.254.169.254/32"]
                )


def test_dependencies_in_the_cluster_are_reached(manifests: list[Manifest]) -> None:
    """The default index is in the cluster, where its namespace's label counts and no address."""
    (settings,) = _kind(manifests, "ConfigMap").values()
    index = urlsplit(settings["data"]["AUDIOFUSE_QDRANT_URL"])
    rules = _kind(manifests, "NetworkPolicy")["dependencies"]["spec"]["egress"]
    inside = [rule for rule in rules if "namespaceSelector" in rule["to"][0]]
    assert {each["port"] for rule in inside for each in rule["ports"]} >= {index.port, 6379}
    (label,) = inside[0]["to"][0]["namespaceSelector"]["matchLabels"]
    assert label in (DEPLOY / "operations.md").read_text()


def test_a_worker_may_finish_before_it_is_killed(manifests: list[Manifest]) -> None:
    """Kubernetes waits longer than the grace period, and longer than what follows it."""
    (settings,) = _kind(manifests, "ConfigMap").values()
    grace = float(settings["data"]["AUDIOFUSE_GRACE_S"])
    worker = _kind(manifests, "Deployment")["worker"]["spec"]["template"]["spec"]
    assert worker["terminationGracePeriodSeconds"] >= grace + 60


def test_a_gpu_worker_has_a_gpu_and_nothing_else_has() -> None:
    """The overlay gives each worker one GPU, and it refuses to run without."""
    manifests = list(yaml.safe_load_all(_built("gpu")))
    for name, pod in _pods(manifests):
        (container,) = pod["spec"]["containers"]
        gpus = container["resources"]["limits"].get("nvidia.com/gpu")
        devices = {e["name"]: e.get("value") for e in container.get("env", ())}
        assert (gpus, devices.get("AUDIOFUSE_DEVICE") == "cuda") == (
            ("1", True) if name == "worker" else (None, False)
        )
        assert container["image"] == "audiofuse:cuda"
    worker = _kind(manifests, "Deployment")["worker"]["spec"]
    assert worker["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
