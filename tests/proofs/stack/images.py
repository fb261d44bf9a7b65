"""The images that docker-compose.yml names: pulled where they can be, else stand-ins.

A stand-in has the name of what it stands for, and is built from what package registries have
(stand_ins/Dockerfile) on roots that debootstrap makes, which takes root's rights and some minutes,
once: all of it stays with the engine, labelled. None of it is part of the product.
"""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
STAND_IN = "audiofuse-stand-in"
PULL_S = 600
console = Console()
SUITES = {
    "bookworm": "ca-certificates,python3,python3-pip,python3-yaml",
    "trixie": "ca-certificates,tzdata,libssl3t64,libatomic1,libjemalloc2,liblzf1,libsystemd0,"
    "libunwind8",
}
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
TARGETS = {"chrislusf/seaweedfs": "seaweedfs", "valkey/valkey": "valkey", "python": "python",
           "prom/prometheus": "prometheus", "prom/alertmanager": "alertmanager",
           "grafana/grafana": "grafana"}  # fmt: skip


def docker(*arguments: str, seconds: float = 3600) -> str:
    """Run docker; return what it said, or raise ``RuntimeError`` with it."""
    done = subprocess.run(
        ["docker", *arguments], check=False, capture_output=True, text=True, timeout=seconds
    )
    if done.returncode:
        raise RuntimeError(f"docker {' '.join(arguments)}: {done.stderr[-3000:]}")
    return done.stdout


def there(image: str) -> bool:
    """Whether the engine has an image."""
    return bool(docker("images", "--quiet", image).strip())


def is_stand_in(image: str) -> bool:
    """Whether an image is one of ours."""
    return STAND_IN in docker("image", "inspect", "--format", "{{json .Config.Labels}}", image)


def provide(images: set[str], network: str, torch: str) -> None:
    """Have every image, and the project's own, which is built of this checkout as `audiofuse:cpu`.

    ``network`` is what the steps of a build see, ``torch`` the argument TORCH.
    """
    base = _base()
    for image in sorted({*images, base}):
        name = image.split(":")[0]
        if name in TARGETS and not there(image) and not _pulled(image):
            _stand_in(image, TARGETS[name], network=network)
    build(network, torch)
    for image in sorted(images):
        if not image.startswith("qdrant/"):
            continue
        if (not there(image) and not _pulled(image)) or is_stand_in(image):
            _stand_in(image, *_qdrant(), network=network)  # anew: it may hold this checkout


def build(network: str, torch: str) -> None:
    """Build the project's image."""
    _build(ROOT / "deploy/Dockerfile", ROOT, "audiofuse:cpu", network, "--build-arg",
           f"TORCH={torch}")  # fmt: skip


def _base() -> str:
    lines = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("FROM "))


def _pulled(image: str) -> bool:
    done = subprocess.run(["docker", "pull", "--quiet", image], check=False, timeout=PULL_S)
    return done.returncode == 0


def _qdrant() -> tuple[str, ...]:
    binary = os.environ.get("QDRANT_BINARY")
    if not binary:
        return ("qdrant-embedded",)
    return ("qdrant-server", "--build-context", f"binary={Path(binary).parent}")


def _stand_in(image: str, target: str, *extra: str, network: str = "default") -> None:
    for suite in SUITES:
        if not there(f"{STAND_IN}:{suite}"):
            _make_root(suite)
    console.print(f"{image} cannot be pulled: building a stand-in")
    mirror = os.environ.get("DEBIAN_MIRROR")
    mirrors = ["--build-arg", f"MIRROR={mirror}"] if mirror else []
    _build(
        HERE / "stand_ins/Dockerfile", HERE / "stand_ins", image, network,
        "--target", target, "--label", f"{STAND_IN}={target}", *mirrors, *extra,
    )  # fmt: skip


def _build(file: Path, context: Path, tag: str, network: str, *extra: str) -> None:
    subprocess.run(
        ["docker", "buildx", "build", "--load", "--progress", "plain", "--network", network,
         "--file", file, "--tag", tag, *extra, context],
        check=True,
    )  # fmt: skip


def _make_root(suite: str) -> None:
    """Import a minimal Debian as an image, with the certificates that this machine trusts."""
    with tempfile.TemporaryDirectory(prefix="audiofuse-root-") as name:
        root = Path(name) / "root"
        mirror = os.environ.get("DEBIAN_MIRROR")
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={SUITES[suite]}", suite, root,
             *([mirror] if mirror else [])],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        shutil.copy(f"/{CERTIFICATES}", root / CERTIFICATES)
        for cache in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(root / cache)
            (root / cache / "partial").mkdir(parents=True)
        tar = subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE)
        docker_import = ["docker", "import", "--change", f"LABEL {STAND_IN}=root", "-"]
        subprocess.run(
            [*docker_import, f"{STAND_IN}:{suite}"], check=True, stdin=tar.stdout,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        if tar.wait():
            raise RuntimeError(f"tar of the root {suite} ended with {tar.returncode}")


def images_of(config: str) -> set[str]:
    """Return the images that a compose file in JSON names, without those that it builds."""
    return {each["image"] for each in json.loads(config)["services"].values()} - {"audiofuse:cpu"}
