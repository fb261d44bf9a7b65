"""The doctor: what a deployment needs, looked at one by one, and what to do about what is wrong.

Each check asks for one thing, as the processes themselves do, and changes nothing.
"""

import math
import os
import platform
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version

import httpx
from redis import RedisError

from audiofuse.core.audio.confinement import Confinement, how_far
from audiofuse.core.bundles.loading import device_of
from audiofuse.core.bundles.manifest import bundle_version, verify_bundle
from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.cores import cpu_quota, may_have_gpu, usable_cpus
from audiofuse.core.errors import AudiofuseError
from audiofuse.core.index.index import open_index
from audiofuse.core.memory import memory_limit
from audiofuse.core.settings import PREFIX, Settings, misspelt_settings
from audiofuse.core.storage.store import open_store, shown_bucket
from audiofuse.workers.queue.broker import connect_redis
from audiofuse.workers.queue.followers import Followers
from audiofuse.workers.queue.lanes import server_time
from audiofuse.workers.queue.outages import Outages
from audiofuse.workers.service.client import service_urls

PACKAGES = ("onnxruntime", "torch", "celery", "qdrant-client")
GIB = 1024**3
LITTLE_MEMORY = 2 * GIB  # a worker and a query service with the shipped encoder take a half of it
LITTLE_DISK = 5 * GIB
# A worker's host has sockets, pipes and shared memory for each of its processes.
FEW_FILES = 1024
CLOCK_S = 5.0  # more and S3 refuses signatures after minutes, and ages are wrong
PATIENCE_S = 5.0  # with a query service
EVICTS = "what waits may be lost: set maxmemory-policy noeviction there"


class Verdict(StrEnum):
    """What a check comes to."""

    WELL = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and what to do if that is not well."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def examine(settings: Settings) -> Iterator[Check]:
    """Look at everything, one after the other; what does not answer is wrong, and no error."""
    checks: dict[str, Callable[[Settings], Check]] = {
        "versions": _versions, "settings": _settings, "cores": _cores, "memory": _memory,
        "open files": _open_files, "disk": _disk, "decoders": _decoders,
        "device": _device, "encoder": _encoder,
        "storage": _storage, "broker": _broker, "clock": _clock, "index": _index,
        "workers": _workers, "search": _search,
    }  # fmt: skip
    wrong = set()
    for name, check in checks.items():
        if name in OF_THE_BROKER and "broker" in wrong:
            continue  # it is said once
        try:
            found = check(settings)
        except (AudiofuseError, RedisError, OSError) as error:
            found = Check(name, Verdict.WRONG, str(error), ADVICE.get(name, ""))
        if found.verdict is Verdict.WRONG:
            wrong.add(name)
        yield found


OF_THE_BROKER = ("clock", "workers")  # what it is asked for
UP = "is `audiofuse up` running, or the server of this address?"
ADVICE = {
    "encoder": f"set {PREFIX}ENCODER, or {PREFIX}REGISTRY to where one is live",
    "storage": f"set {PREFIX}BUCKET, its endpoint and a key that may list and read it",
    "broker": f"{PREFIX}BROKER_URL: {UP}",
    "index": f"{PREFIX}QDRANT_URL: {UP}",
    "device": f"install the driver, or set {PREFIX}DEVICE=cpu",
}


def _judged(name: str, found: str, *, well: bool, advice: str) -> Check:
    return Check(name, Verdict.WELL if well else Verdict.WARNING, found, "" if well else advice)


def _versions(_: Settings) -> Check:
    found = [f"audiofuse {version('audiofuse')}", f"Python {platform.python_version()}"]
    missing = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    advice = f"not installed: {', '.join(missing)}; install audiofuse anew"
    return _judged("versions", ", ".join(found), well=not missing, advice=advice)


def _settings(_: Settings) -> Check:
    lines = misspelt_settings()
    return _judged("settings", f"{len(lines)} unknown", well=not lines, advice="; ".join(lines))


def _cores(_: Settings) -> Check:
    cpus, quota = usable_cpus(), cpu_quota()
    limit = "no quota" if quota == math.inf else f"a quota of {quota:g}"
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    asked = int(given) if given.isdecimal() else 0
    return _judged(
        "cores",
        f"{cpus} of {os.cpu_count()}, {limit}" + (f", OMP_NUM_THREADS={asked}" if asked else ""),
        well=asked <= cpus,
        advice=f"OMP_NUM_THREADS is more than the {cpus} there are: threads wait for each other",
    )


def _memory(_: Settings) -> Check:
    limit = memory_limit()
    return _judged(
        "memory", f"{limit / GIB:.1f} GiB", well=limit >= LITTLE_MEMORY,
        advice="give it 2 GiB or more",
    )  # fmt: skip


def _open_files(_: Settings) -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _judged(
        "open files", f"{soft}, at most {hard}", well=soft >= FEW_FILES,
        advice=f"raise the limit: ulimit -n {FEW_FILES} or LimitNOFILE=",
    )  # fmt: skip


def _disk(settings: Settings) -> Check:
    home = next(each for each in (settings.home, *settings.home.parents) if each.exists())
    free = shutil.disk_usage(home).free
    return _judged(
        "disk", f"{free / GIB:.1f} GiB free for {settings.home}", well=free >= LITTLE_DISK,
        advice=f"make room, or set {PREFIX}HOME to where there is some",
    )  # fmt: skip


def _decoders(_: Settings) -> Check:
    found = how_far()
    return _judged(
        "decoders", f"what reads sounds is confined: {found.value}", well=found is Confinement.FULL,
        advice="a file that exploits a decoder gets this user's rights: Landlock is wanted, of "
        "Linux 5.13 or later",
    )  # fmt: skip


def _device(settings: Settings) -> Check:
    device = device_of(settings)
    slow = may_have_gpu(settings.device) and device == "cpu"
    return _judged(
        "device", f"encoders run on the {'GPU' if device == 'cuda' else 'CPU'}", well=not slow,
        advice="there is a GPU's driver, but PyTorch cannot use it: a build for it is needed",
    )  # fmt: skip


def _encoder(settings: Settings) -> Check:
    rollout, _ = open_registry(settings).rollout()
    if rollout:
        is_open = f", and a rollout is {rollout.phase}" if rollout.other else ""
        return Check("encoder", Verdict.WELL, f"{rollout.live} is live{is_open}")
    if settings.encoder is None:
        found = "none is live, and none is set"
        return Check("encoder", Verdict.WRONG, found, ADVICE["encoder"])
    verify_bundle(settings.encoder)
    return Check("encoder", Verdict.WELL, f"{bundle_version(settings.encoder)}, undamaged")


def _storage(settings: Settings) -> Check:
    store = open_store(settings)
    empty = [part for part in store.parts() if next(iter(store.list(part)), None) is None]
    return _judged(
        "storage", f"{shown_bucket(settings)} answers", well=not empty,
        advice=f"{' '.join(filter(None, empty)) or 'it'} is empty: is this the bucket that is "
        "meant?",
    )  # fmt: skip


def _broker(settings: Settings) -> Check:
    redis = connect_redis(settings)
    about = redis.info("server")
    policy = redis.info("memory").get("maxmemory_policy", "unknown")
    name = (
        f"{about.get('server_name', 'redis')} {about.get('valkey_version', about['redis_version'])}"
    )
    return _judged("broker", f"{name}, {policy}", well=policy == "noeviction", advice=EVICTS)


def _clock(settings: Settings) -> Check:
    off_s = server_time(connect_redis(settings)) - time.time()
    return _judged(
        "clock", f"{off_s:+.1f} s from the broker's", well=abs(off_s) < CLOCK_S,
        advice="set both by NTP",
    )  # fmt: skip


def _index(settings: Settings) -> Check:
    index = open_index(settings)
    live = index.live()
    if live is None:
        return Check(
            "index", Verdict.WARNING, "it answers, and is empty", "workers make it: do any run?"
        )
    health = index.health(live)
    return _judged(
        "index", f"{live.version}, {health.points:,} items, {health.status}",
        well=health.status != "red", advice="see Qdrant's log: a collection has failed",
    )  # fmt: skip


def _workers(settings: Settings) -> Check:
    redis = connect_redis(settings)
    devices = Followers(redis, settings.index_name).devices()
    for outage in Outages(redis, settings.index_name).current():
        return Check("workers", Verdict.WRONG, f"{outage.worker} waits", outage.error)
    number = sum(name.startswith("worker") for name in devices)
    return _judged(
        "workers", f"{number} run" if number != 1 else "1 runs", well=number > 0,
        advice="start one: audiofuse worker",
    )  # fmt: skip


def _search(settings: Settings) -> Check:
    states = {url: _state(url) for url in service_urls(settings.search_url)}
    return _judged(
        "search", ", ".join(f"{url} {state}" for url, state in states.items()),
        well="is ready" in states.values(), advice=f"audiofuse serve, or set {PREFIX}SEARCH_URL",
    )  # fmt: skip


def _state(url: str) -> str:
    try:
        return "is ready" if httpx.get(f"{url}/readyz", timeout=PATIENCE_S).is_success else "waits"
    except httpx.HTTPError as error:
        return f"does not answer: {error}"
