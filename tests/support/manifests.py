"""What kustomize builds of deploy/kubernetes, and how to find one's way in it."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
BIN = Path(sys.executable).parent
COMPONENT, PART_OF = "app.kubernetes.io/component", "app.kubernetes.io/part-of"

Manifest = dict[str, Any]


def copied(folder: Path) -> Path:
    """Copy what is built into a folder, with secrets for the demo; return that of Kubernetes."""
    for name in ("kubernetes", "grafana"):
        ignored = shutil.ignore_patterns("secrets")
        shutil.copytree(DEPLOY / name, folder / name, ignore=ignored)
    command = ["sh", folder / "kubernetes" / "demo" / "secrets.sh"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "kubernetes"


def build(overlay: Path) -> str:
    """Return what kustomize builds of a folder."""
    command = [BIN / "kubectl", "kustomize", overlay]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def foreign_kinds(built: str, folder: Path) -> list[str]:
    """Have Kubernetes' schemas judge what was built; return the kinds that are not its own."""
    path = folder / "built.yaml"
    path.write_text(built)
    command = [BIN / "kubernetes-validate", "--strict", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"find schema for kind (\w+)", done.stdout + done.stderr)


def parse(built: str) -> list[Manifest]:
    """Return the objects in it."""
    return list(yaml.safe_load_all(built))


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Return the objects of a kind, by name."""
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return the pod template of everything that runs, by name."""
    found = {}
    for each in manifests:
        spec = each.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            found[each["metadata"]["name"]] = spec["template"]
    return found


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Yield every container with the name of what it runs in."""
    for name, pod in pods(manifests).items():
        for container in pod["spec"]["containers"]:
            yield name, container


def selected(manifests: list[Manifest], selector: Manifest) -> set[str]:
    """Return the names of the pods whose labels a selector matches."""
    return {
        name
        for name, pod in pods(manifests).items()
        if _matches(selector, pod["metadata"]["labels"])
    }


def _matches(selector: Manifest, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}, selector
    return selector.get("matchLabels", {}).items() <= labels.items()
