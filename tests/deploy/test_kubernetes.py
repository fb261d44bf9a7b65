"""deploy/kubernetes: valid for Kubernetes and KEDA, least rights, and true to the settings."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from manifests import (
    DEPLOY,
    Manifest,
    build,
    containers,
    copied,
    foreign_kinds,
    of_kind,
    parse,
    pods,
)

from audiofuse.core.settings import PREFIX, Settings

OVERLAYS = ("cpu", "gpu", "demo")
OF_THE_DEMO = {"s3", "valkey", "qdrant"}  # what elsewhere is somebody else's
READERS = {"worker", "search", "exporter", "reconcile"}
SECRETS = {  # who gets which: only who needs it
    "audiofuse-broker": READERS | {"intake", "operator"},
    "audiofuse-index": {"worker", "operator"},
    "audiofuse-index-reader": READERS - {"worker"},
    "audiofuse-storage": READERS,
    "audiofuse-owner": {"operator"},
    "audiofuse-search": {"search"},
    "audiofuse-uploads": {"search"},
    "audiofuse-webhook": {"intake"},
}
IF_WANTED = {"audiofuse-uploads"}  # there is no such secret unless somebody makes it
ACCOUNTS = {
    "audiofuse": READERS - {"search"},
    "audiofuse-search": {"search"},
    "audiofuse-intake": {"intake"},
    "audiofuse-owner": {"operator"},
}
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
NEWER_THAN_ITS_MODEL = {"behavior"}  # KEDA 2.17 has it; the model is of 2.16
IMMUTABLE = {"Job", "StatefulSet"}  # of which Kubernetes refuses to change most


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of deploy/kubernetes, with secrets for the demo."""
    return copied(tmp_path_factory.mktemp("deploy"))


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    """Return the name of each overlay that runs audiofuse."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def built(folder: Path, overlay: str) -> str:
    """Return what kustomize builds of it."""
    return build(folder / overlay)


@pytest.fixture(scope="module")
def manifests(built: str) -> list[Manifest]:
    """Return the same, parsed."""
    return parse(built)


@pytest.fixture(scope="module")
def ours(manifests: list[Manifest]) -> list[Manifest]:
    """Return it without the demo's servers."""
    return [each for each in manifests if each["metadata"]["name"] not in OF_THE_DEMO]


@pytest.fixture(scope="module")
def with_keda(folder: Path) -> list[Manifest]:
    """Return what is built where there is KEDA."""
    return parse(build(folder / "cpu"))


def test_kubernetes_takes_it(built: str, overlay: str, tmp_path: Path) -> None:
    """Every object is one that Kubernetes 1.37 knows, field by field; KEDA's alone it does not."""
    unknown = foreign_kinds(built, tmp_path)
    assert unknown == ([] if overlay == "demo" else ["ScaledObject"])


def _changed(folder: Path, target: Path, overlay: str, **changes: Any) -> str:
    """Build an overlay with other values in its own kustomization.yaml."""
    path = copied(target) / overlay / "kustomization.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    if overlay == "demo":  # with the same secrets
        for each in (folder / overlay / "secrets").iterdir():
            (path.parent / "secrets" / each.name).write_bytes(each.read_bytes())
    return build(path.parent)


def test_an_image_that_is_named_is_everywhere(folder: Path, overlay: str, tmp_path: Path) -> None:
    """Where the overlay names a registry every pod runs that image, and none another."""
    images = [{"name": "audiofuse", "newName": "registry.example/a", "newTag": "1.2.3"}]
    built = parse(_changed(folder, tmp_path, overlay, images=images))
    named = {container["image"] for name, container in containers(built) if name not in OF_THE_DEMO}
    assert named == {"registry.example/a:1.2.3"}


def test_no_image_is_one_today_and_another_tomorrow(manifests: list[Manifest]) -> None:
    """Every tag is a version, audiofuse's that of this checkout; a node keeps what it has."""
    project = (DEPLOY.parent / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert version
    for name, container in containers(manifests):
        image, _, tag = container["image"].partition(":")
        assert re.match(r"v?\d+\.\d+", tag), name
        if image == "audiofuse":
            assert tag.startswith(f"{version[1]}-"), name
            assert container["imagePullPolicy"] == "IfNotPresent", name


def test_another_setting_starts_everybody_anew_and_changes_nothing_else(
    folder: Path, manifests: list[Manifest], overlay: str, tmp_path: Path
) -> None:
    """Settings have a name by their content: who reads them is replaced, and no more is changed."""
    more = yaml.safe_load((folder / overlay / "kustomization.yaml").read_text())
    generators = more.get("configMapGenerator", [{"name": "settings", "behavior": "merge"}])
    generators[0]["literals"] = [*generators[0].get("literals", ()), "AUDIOFUSE_IN_HAND=7"]
    other = parse(_changed(folder, tmp_path, overlay, configMapGenerator=generators))
    before, after = (
        {(m["kind"], m["metadata"]["name"]): m for m in each} for each in (manifests, other)
    )
    (settings,) = of_kind(other, "ConfigMap")
    different = {name for kind, name in after if before.get((kind, name)) != after[kind, name]}
    assert different == {settings, "operator", "intake", *READERS}
    assert {kind for kind, _ in before.keys() - after.keys()} == {"ConfigMap"}


def test_it_may_be_applied_again(manifests: list[Manifest]) -> None:
    """Nothing is of a kind that Kubernetes refuses to change under the name that it has."""
    assert not {each["kind"] for each in manifests} & IMMUTABLE


def test_no_selector_holds_what_changes(ours: list[Manifest]) -> None:
    """What a deployment selects by, which cannot change, is its name and nothing else."""
    for name, each in of_kind(ours, "Deployment").items():
        assert each["spec"]["selector"] == {"matchLabels": {"app.kubernetes.io/component": name}}


def test_keda_takes_it(with_keda: list[Manifest]) -> None:
    """The scaled object is one, of the worker, and no field of it is lost on the way to KEDA."""
    (given,) = of_kind(with_keda, "ScaledObject").values()
    understood = ScaledObject.model_validate(given).model_dump(by_alias=True, exclude_none=True)
    fallback = given["spec"]["fallback"]
    newer = {key: fallback[key] for key in NEWER_THAN_ITS_MODEL}
    understood["spec"]["fallback"] |= newer
    assert given["spec"] == _common(given["spec"], understood["spec"])
    assert given["spec"]["scaleTargetRef"]["name"] in of_kind(with_keda, "Deployment")


def _common(given: Any, understood: Any) -> Any:
    """Return of what was given only what was understood."""
    if isinstance(given, dict):
        return {key: _common(given[key], understood[key]) for key in given if key in understood}
    if isinstance(given, list):
        return [_common(*pair) for pair in zip(given, understood, strict=True)]
    return understood


def test_who_cannot_count_ends_no_worker(with_keda: list[Manifest]) -> None:
    """While Prometheus is away there are no fewer workers than before, and some in any case."""
    (scaled,) = of_kind(with_keda, "ScaledObject").values()
    assert scaled["spec"]["fallback"]["behavior"] == "currentReplicasIfHigher"
    assert scaled["spec"]["fallback"]["replicas"] >= scaled["spec"]["minReplicaCount"]


def test_it_is_scaled_by_metrics_that_exist(with_keda: list[Manifest]) -> None:
    """Every name in the query is a metric of deploy/metrics.md; held messages count as waiting."""
    (scaled,) = of_kind(with_keda, "ScaledObject").values()
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    named = set(re.findall(r"audiofuse_\w+", query))
    table = (DEPLOY / "metrics.md").read_text()
    assert named
    assert not [name for name in named if f"| `{name}` |" not in table]
    assert "audiofuse_backlog_messages)" in query  # every state: no selector leaves one out


def test_every_pod_has_the_least_rights(manifests: list[Manifest]) -> None:
    """All run under the restricted standard, with a read-only root, limits, and no API token."""
    labels = of_kind(manifests, "Namespace")["audiofuse"]["metadata"]["labels"]
    for mode in ("enforce", "audit", "warn"):
        assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"
    for name, pod in pods(manifests).items():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            limits = container["resources"]["limits"].keys()
            assert {"cpu", "memory", "ephemeral-storage"} <= limits, name
            mounted = {each["name"] for each in container["volumeMounts"]}
            assert mounted == {each["name"] for each in spec["volumes"]}, name


def test_numerical_libraries_start_as_many_threads_as_are_allowed(ours: list[Manifest]) -> None:
    """Each container says its CPU limit to libraries that would count the node's CPUs."""
    for name, container in containers(ours):
        given = {each["name"]: each.get("valueFrom") for each in container["env"]}
        for variable in THREADS:
            assert given[variable] == {"resourceFieldRef": {"resource": "limits.cpu"}}, name


def test_who_still_asks_a_pod_that_goes_is_answered(ours: list[Manifest]) -> None:
    """What a service leads to goes on for some seconds after it was told to end."""
    for service in of_kind(ours, "Service").values():
        name = service["spec"]["selector"]["app.kubernetes.io/component"]
        (container,) = pods(ours)[name]["spec"]["containers"]
        assert 5 <= container["lifecycle"]["preStop"]["sleep"]["seconds"] <= 15, name


def test_replicas_are_spread_and_slow_starts_are_waited_for(ours: list[Manifest]) -> None:
    """Copies of a service share no node where there are others; nobody is killed as it starts."""
    for name in ("search", "intake"):
        (spread,) = pods(ours)[name]["spec"]["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"] == {"app.kubernetes.io/component": name}
    for name, container in containers(ours):
        assert ("startupProbe" in container) == ("livenessProbe" in container), name


def test_each_account_has_the_rights_of_one_kind(ours: list[Manifest]) -> None:
    """Who reads, who answers, who receives events and who owns are four; nobody is the default."""
    users: dict[str, set[str]] = {}
    for name, pod in pods(ours).items():
        users.setdefault(pod["spec"]["serviceAccountName"], set()).add(name)
    assert users == ACCOUNTS
    accounts = of_kind(ours, "ServiceAccount")
    assert accounts.keys() == {*ACCOUNTS, "default"}
    assert not any(each["automountServiceAccountToken"] for each in accounts.values())


def test_the_operator_begins_and_then_waits(ours: list[Manifest]) -> None:
    """It makes what a deployment begins with, is ready when that is done, and alone may do so."""
    (container,) = pods(ours)["operator"]["spec"]["containers"]
    script = container["command"][-1]
    assert re.match(r"python /opt/audiofuse/deploy/begin.py; touch (\S+); exec sleep ", script)
    assert container["readinessProbe"]["exec"]["command"][-1] in script
    assert "deploy/begin.py" in (DEPLOY / "Dockerfile").read_text()


def test_no_comparison_hangs_for_ever(manifests: list[Manifest]) -> None:
    """Where one forbids the next, it is ended after a time."""
    for each in of_kind(manifests, "CronJob").values():
        assert each["spec"]["concurrencyPolicy"] == "Forbid"
        assert each["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] <= 86400


def test_where_it_is_wanted_a_listing_outlives_its_pod(folder: Path, tmp_path: Path) -> None:
    """With the component `listing` reconcile's home is a claim, which is made, and no other is."""
    built = _changed(folder, tmp_path, "cpu", components=["../listing"])
    assert foreign_kinds(built, tmp_path) == ["ScaledObject"]
    (claim,) = of_kind(parse(built), "PersistentVolumeClaim").values()
    assert claim["metadata"]["namespace"] == "audiofuse"
    for name, pod in pods(parse(built)).items():
        (home,) = (each for each in pod["spec"]["volumes"] if each["name"] == "home")
        kept = {"persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}
        assert home == {"name": "home"} | (kept if name == "reconcile" else {"emptyDir": {}})


def test_secrets_are_named_and_never_held(ours: list[Manifest], overlay: str) -> None:
    """No secret is in the files, and each goes only to those that need it."""
    if overlay != "demo":  # which makes its own
        assert not of_kind(ours, "Secret")
    users: dict[str, set[str]] = {}
    optional = set()
    for name, container in containers(ours):
        for each in container["envFrom"]:
            if "secretRef" in each:
                secret = re.sub(r"-[a-z0-9]{10}$", "", each["secretRef"]["name"])
                users.setdefault(secret, set()).add(name)
                optional |= {secret} if each["secretRef"].get("optional") else set()
        assert not [
            each for each in container["env"] if "secretKeyRef" in each.get("valueFrom", {})
        ]
    assert users == SECRETS
    assert optional == IF_WANTED


def test_whose_key_may_write_is_said_last(ours: list[Manifest]) -> None:
    """Search's key of storage, where it takes uploads, wins over the one that all readers have."""
    (search,) = (each for name, each in containers(ours) if name == "search")
    secrets = [each["secretRef"]["name"] for each in search["envFrom"] if "secretRef" in each]
    assert secrets[-1] == "audiofuse-uploads"
    assert any(each.startswith("audiofuse-storage") for each in secrets)


def test_operations_tells_how_to_make_every_secret() -> None:
    """There is a command for each secret that a pod names, none with a secret typed in it."""
    page = (DEPLOY / "operations.md").read_text()
    listed = re.search(r"for name in ([\w -]+); do", page)
    assert listed
    assert {f"audiofuse-{name}" for name in listed[1].split()} == SECRETS.keys() - IF_WANTED
    others = (DEPLOY / "connect.md").read_text()
    assert all(f"secret generic {name} --from-env-file" in others for name in IF_WANTED)
    assert "from-literal" not in page


def test_every_setting_exists(ours: list[Manifest]) -> None:
    """Each variable is a setting, with a value that it takes; links to sounds are among them."""
    (settings,) = of_kind(ours, "ConfigMap").values()
    given = dict(settings["data"])
    assert "AUDIOFUSE_S3_PUBLIC_URL" in given
    for _, container in containers(ours):
        literal = {each["name"]: each.get("value") for each in container.get("env", ())}
        given |= {name: value for name, value in literal.items() if value is not None}
        named = {name.removeprefix(PREFIX) for name in literal if name.startswith(PREFIX)}
        assert {name.lower() for name in named} <= Settings.model_fields.keys()
    names = {name.removeprefix(PREFIX).lower(): value for name, value in given.items() if value}
    assert names.keys() - {"tmpdir"} <= Settings.model_fields.keys()
    Settings(**names)


def test_a_worker_may_finish_before_it_is_killed(manifests: list[Manifest]) -> None:
    """Kubernetes waits longer than the grace period, and longer than what follows it."""
    (settings,) = of_kind(manifests, "ConfigMap").values()
    grace = float(settings["data"]["AUDIOFUSE_GRACE_S"])
    assert pods(manifests)["worker"]["spec"]["terminationGracePeriodSeconds"] >= grace + 60


def test_a_gpu_worker_has_a_gpu_and_nothing_else_has(folder: Path) -> None:
    """The overlay gives each worker one GPU, and it refuses to run without."""
    manifests = parse(build(folder / "gpu"))
    for name, container in containers(manifests):
        gpus = container["resources"]["limits"].get("nvidia.com/gpu")
        devices = {e["name"]: e.get("value") for e in container.get("env", ())}
        assert (gpus, devices.get("AUDIOFUSE_DEVICE") == "cuda") == (
            ("1", True) if name == "worker" else (None, False)
        )
        assert container["image"].endswith("-cuda")
    worker = of_kind(manifests, "Deployment")["worker"]["spec"]
    assert worker["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
