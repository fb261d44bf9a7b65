"""What so many sounds need, before anything is bought: hours, memory, disk, requests and money.

Computed from what ``make bench-worker`` measured, on this machine or on that of the release. Every
line says what it comes from; nothing here was measured at such sizes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.config import Grid

SHIPPED = Path(__file__).with_name("figures.json")

# Of the default encoder, in deploy/capacity.md: numbers of a vector, bytes of a point.
ITEM_NUMBERS, AUDIO_NUMBERS = 911, 384
GRAPH_BYTES, IDS_BYTES = 140, 300  # of a point, in memory
PAYLOAD_BYTES, MOMENT_PAYLOAD_BYTES = 500, 200  # on disk
GRID = Grid()  # of moments
MOMENTS_TAKE = 0.15  # more than the recording alone: make bench-recordings, 60 minutes
# A sound and two possible names of its sidecar, looked at before and after; both are got.
REQUESTS_A_SOUND = 8
LISTED = 1000  # keys of one page of a listing
TERA = 1e12


class Bucket(StrEnum):
    """Where sounds lie."""

    S3 = "s3"
    FOLDER = "folder"


class Vectors(StrEnum):
    """As what an index keeps item vectors in memory; of int8 it has float32 on disk besides."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


BYTES_A_NUMBER = {Vectors.FLOAT32: 4, Vectors.FLOAT16: 2, Vectors.INT8: 1}


class CpuMs(BaseModel):
    """CPU milliseconds of one clip: what it costs however long it is, and what its length costs."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    messages: float
    device: float
    decoders: float
    encoder: float
    servers: float

    def of(self, stretch: float, *, encodes: bool) -> float:
        """Return those of a host, for a clip ``stretch`` times as long as the measured one."""
        heard = self.decoders + (self.encoder if encodes else 0.0)
        return self.messages + self.device + heard * stretch


class Figures(BaseModel):
    """What a benchmark measured, of clips of so many ``seconds``, by kind of bucket."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    measured: str
    seconds: float
    cpu_ms: dict[Bucket, CpuMs]


def read_figures(path: Path = SHIPPED) -> Figures:
    """Read what ``make bench-worker ARGS='--figures FILE'`` wrote; else ``ConfigurationError``."""
    try:
        return Figures.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigurationError(f"{path} has no figures of make bench-worker: {error}") from error


@dataclass(frozen=True)
class Prices:
    """What things cost, in any one currency."""

    core_hour: float
    million_requests: float
    memory_gb_month: float
    disk_gb_month: float


@dataclass(frozen=True)
class Wanted:
    """What is to be planned for.

    ``gpu_clips_per_s`` is what a GPU hears a second, of clips as long as the measured ones
    (``make bench-gpu``); 0: the encoder runs on the CPU.
    """

    sounds: int
    seconds: float
    cores: int
    bucket: Bucket = Bucket.S3
    moments: bool = True
    vectors: Vectors = Vectors.FLOAT32
    replicas: int = 1
    gpu_clips_per_s: float = 0.0


@dataclass(frozen=True)
class Line:
    """One line of a plan: an amount, for people, and what it comes from."""

    what: str
    amount: str
    source: str


def compute(wanted: Wanted, figures: Figures, prices: Prices) -> list[Line]:
    """Return what is needed, line by line."""
    return [*_time(wanted, figures, prices), *_space(wanted, prices), *_requests(wanted, prices)]


def _time(wanted: Wanted, figures: Figures, prices: Prices) -> Iterator[Line]:
    cpu = figures.cpu_ms[wanted.bucket]
    stretch = wanted.seconds / figures.seconds
    more = 1 + MOMENTS_TAKE if _moments(wanted) else 1.0
    host_ms = more * cpu.of(stretch, encodes=not wanted.gpu_clips_per_s)
    core_hours = wanted.sounds * host_ms / 3_600_000
    hours = core_hours / wanted.cores
    by = f"{host_ms:.1f} CPU ms a sound; {figures.measured}"
    yield Line("core-hours of workers", f"{core_hours:,.0f}", by)
    if wanted.gpu_clips_per_s:
        a_second = wanted.gpu_clips_per_s / stretch
        beside = math.ceil(a_second * host_ms / 1000)
        hours = max(hours, wanted.sounds / a_second / 3600)
        yield Line(
            "cores that keep one GPU busy", f"{beside:,}", f"{a_second:,.0f} sounds a second"
        )
    yield Line(f"hours on {wanted.cores} cores", f"{hours:,.1f}", "workers alone on them")
    servers = wanted.sounds * cpu.servers / 3_600_000
    yield Line("core-hours of servers", f"{servers:,.0f}", "index, broker and storage, as measured")
    money = core_hours * prices.core_hour
    yield Line("money for workers", f"{money:,.2f}", f"{prices.core_hour} a core-hour")


def _space(wanted: Wanted, prices: Prices) -> Iterator[Line]:
    moments = _moments(wanted)
    points = wanted.sounds * (1 + moments)
    item = ITEM_NUMBERS * BYTES_A_NUMBER[wanted.vectors]
    memory = points * (item + GRAPH_BYTES + IDS_BYTES) * wanted.replicas
    kept = ITEM_NUMBERS * 4 if wanted.vectors is Vectors.INT8 else item
    vectors = points * (kept + AUDIO_NUMBERS * 4)
    payload = wanted.sounds * (PAYLOAD_BYTES + moments * MOMENT_PAYLOAD_BYTES)
    disk = (vectors + payload) * wanted.replicas
    each = f"{1 + moments:,} a sound" if moments else "one a sound"
    yield Line("points", f"{points:,}", each)
    by = f"{wanted.vectors}, {wanted.replicas} replica(s); twice as much while a rollout fills"
    yield Line("index, memory", _size(memory), by)
    yield Line("index, disk", _size(disk), "vectors and payload; likewise")
    money = memory / 1e9 * prices.memory_gb_month + disk / 1e9 * prices.disk_gb_month
    by = f"{prices.memory_gb_month} a GB of memory, {prices.disk_gb_month} of disk"
    yield Line("money for the index, a month", f"{money:,.2f}", by)


def _requests(wanted: Wanted, prices: Prices) -> Iterator[Line]:
    if wanted.bucket is not Bucket.S3:
        return
    requests = wanted.sounds * REQUESTS_A_SOUND
    by = f"{REQUESTS_A_SOUND} a sound: looked at before and after, and got"
    yield Line("requests to S3", f"{requests:,}", by)
    money = requests / 1e6 * prices.million_requests
    yield Line("money for them", f"{money:,.2f}", f"{prices.million_requests} a million")
    pages = math.ceil(wanted.sounds / LISTED)
    yield Line("requests of one reconcile", f"{pages:,}", f"a listing, {LISTED:,} keys a page")


def _moments(wanted: Wanted) -> int:
    """Return how many moments a sound has."""
    return GRID.count(wanted.seconds) if wanted.moments else 0


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count < TERA else f"{count / TERA:,.2f} TB"
