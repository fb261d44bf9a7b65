"""The bare device: clips a second by batch size, and by each way to compute that might pay.

Ways that are not what workers do are written here only, ready to be measured where there is a GPU.
Each is compared with float32 without TF32: by the cosine of the window that is farthest, and by the
largest difference as a part of the largest number, both in millionths.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from mixed_batches import WORDS
from torch import Tensor

from audiofuse.core.audio.windows import SAMPLE_RATE, Samples
from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.inference import prepare, run_on_gpu
from audiofuse.core.encoder.runtime import OutOfMemory
from audiofuse.core.encoder.starting import default_encoder
from audiofuse.core.encoder.torch_runtime import TorchRuntime
from audiofuse.core.model.mel import MelPicture

WARM_UPS = 3  # batches before any is timed: kernels are searched, memory is taken
STREAM = 4  # batches in a row where one is uploaded while another is computed

Rows = dict[str, dict[str, float]]
Run = Callable[[], Floats]  # encodes one batch, returns the sum of each window's frames


@dataclass(frozen=True)
class Setup:
    """An encoder on its device, and a batch of windows for it."""

    encoder: Encoder
    device: torch.device
    windows: Sequence[Samples]
    budget_s: float  # for each figure

    @property
    def arrays(self) -> tuple[Samples, np.ndarray]:
        """The batch as arrays."""
        return self.encoder.audio_processor(self.windows)

    def on_device(self) -> list[Tensor]:
        """Return the batch on the device."""
        return [torch.from_numpy(array).to(self.device) for array in self.arrays]

    def sums(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return the sums of a batch that is on the device; nobody waits for them."""
        frames, heard = self.encoder.model.encode_audio(waveforms, lengths)
        return (frames * heard.unsqueeze(-1)).sum(1)


def setup_of(encoder: Encoder, device: str, seconds: float, size: int, budget_s: float) -> Setup:
    """Put an encoder on the device as workers do, and make ``size`` windows of noise."""
    run_on_gpu(prepare(encoder), device, "float32")
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((size, int(seconds * SAMPLE_RATE))).astype(np.float32) / 10
    return Setup(encoder, torch.device(device), list(noise), budget_s)


def seconds_of(run: Callable[[], object], budget_s: float) -> float:
    """Return how long one run takes: the median of as many as the budget has room for."""
    for _ in range(WARM_UPS):
        run()
    took: list[float] = []
    while sum(took) < budget_s or len(took) < WARM_UPS:
        started = time.perf_counter()
        run()
        took.append(time.perf_counter() - started)
    return float(np.median(took))


def batches(setup: Setup, sizes: Sequence[int]) -> Rows:
    """Measure whole batches, padded, uploaded, computed and fetched, of each size."""
    rows: Rows = {}
    for size in sizes:
        some = setup.windows[:size]
        try:
            took = seconds_of(lambda some=some: setup.encoder.encode_windows(some), setup.budget_s)
        except OutOfMemory:
            break
        rows[f"batches of {size}"] = {"clips/s": size / took, "ms a batch": 1000 * took}
    return rows


def texts(setup: Setup, sizes: Sequence[int]) -> Rows:
    """Measure how many sounds a second are fused with a text, in batches of each size."""
    rng, rows = np.random.default_rng(0), Rows()
    for size in sizes:
        words = [" ".join(rng.choice(WORDS, 20)) for _ in range(size)]
        audio = AudioEmbedding(np.ones((size, setup.encoder.audio_dim), np.float32))
        took = seconds_of(
            lambda audio=audio, words=words: setup.encoder.fuse(audio, words), setup.budget_s
        )
        rows[f"fused in batches of {size}"] = {"clips/s": size / took, "ms a batch": 1000 * took}
    return rows


@contextmanager
def _as_workers(setup: Setup) -> Iterator[Run]:
    arrays = setup.arrays
    yield lambda: np.stack([each.total for each in setup.encoder.runtime.encode_windows(*arrays)])


@contextmanager
def _there_already(setup: Setup) -> Iterator[Run]:
    batch = setup.on_device()
    yield lambda: setup.sums(*batch).cpu().numpy()


@contextmanager
def _mel_on_cpu(setup: Setup) -> Iterator[Run]:
    shape, (waveforms, lengths) = setup.encoder.config.audio, setup.arrays
    picture, tower = (
        MelPicture(shape.mel_bands, shape.hop_samples),
        setup.encoder.model.audio_tower,
    )

    def run() -> Floats:
        frames = tower.frames(torch.from_numpy(picture(waveforms)).to(setup.device))
        steps, samples = frames.shape[1], waveforms.shape[1]
        heard = (lengths.astype(np.int64) * steps + samples - 1) // samples
        found: Floats = np.stack(
            [own[:count].sum(0) for own, count in zip(frames.cpu().numpy(), heard, strict=True)]
        )
        return found

    yield run


@contextmanager
def _flags(setup: Setup, **flags: bool) -> Iterator[Run]:
    before = {name: getattr(torch.backends.cudnn, name) for name in flags}
    for name, value in flags.items():
        setattr(torch.backends.cudnn, name, value)
    try:
        with _as_workers(setup) as run:
            yield run
    finally:
        for name, value in before.items():
            setattr(torch.backends.cudnn, name, value)


@contextmanager
def _half(setup: Setup, dtype: torch.dtype) -> Iterator[Run]:
    waveforms, lengths = setup.arrays

    def run() -> Floats:
        batch = (torch.from_numpy(each).to(setup.device) for each in (waveforms, lengths))
        with torch.autocast(setup.device.type, dtype):
            return setup.sums(*batch).float().cpu().numpy()

    yield run


@contextmanager
def _not_channels_last(setup: Setup) -> Iterator[Run]:
    tower = setup.encoder.model.audio_tower
    tower.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    try:
        with _as_workers(setup) as run:
            yield run
    finally:
        tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def _compiled(setup: Setup) -> Iterator[Run]:
    # On a CPU only that it compiles is of interest.
    options = {"backend": "eager"} if setup.device.type == "cpu" else {"mode": "max-autotune"}
    compiled, (waveforms, lengths) = (
        torch.compile(setup.sums, dynamic=False, **options),
        setup.arrays,
    )

    def run() -> Floats:
        batch = (torch.from_numpy(each).to(setup.device) for each in (waveforms, lengths))
        return compiled(*batch).cpu().numpy()  # type: ignore[no-any-return]

    yield run


@contextmanager
def _graph(setup: Setup, dtype: torch.dtype = torch.float32) -> Iterator[Run]:
    arrays, batch = setup.arrays, setup.on_device()
    half = torch.autocast("cuda", dtype, cache_enabled=False)

    def compute() -> Tensor:
        with half if dtype != torch.float32 else nullcontext():
            return setup.sums(*batch)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is captured must have run on another stream before
        for _ in range(WARM_UPS):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute()

    def run() -> Floats:
        for there, array in zip(batch, arrays, strict=True):
            there.copy_(torch.from_numpy(array))
        graph.replay()
        return result.float().cpu().numpy()

    yield run


@contextmanager
def _pinned(setup: Setup) -> Iterator[Run]:
    arrays = setup.arrays
    staging = [torch.from_numpy(array).pin_memory() for array in arrays]

    def run() -> Floats:
        for pinned, array in zip(staging, arrays, strict=True):
            pinned.copy_(torch.from_numpy(array))
        batch = [pinned.to(setup.device, non_blocking=True) for pinned in staging]
        return setup.sums(*batch).cpu().numpy()

    yield run


@contextmanager
def _double_buffered(setup: Setup) -> Iterator[Run]:
    """Upload each of ``STREAM`` batches on a stream of its own while the one before is computed."""
    waveforms, lengths = map(torch.from_numpy, setup.arrays)
    own_lengths = lengths.to(setup.device)
    pinned = [torch.empty_like(waveforms).pin_memory() for _ in range(2)]
    there = [waveforms.to(setup.device) for _ in range(2)]
    uploading, computing = torch.cuda.Stream(), torch.cuda.current_stream()
    uploaded, computed = ([torch.cuda.Event() for _ in range(2)] for _ in range(2))

    def run() -> Floats:
        results = []
        for number in range(STREAM):
            slot = number % 2
            uploaded[slot].synchronize()  # the pinned memory is free
            pinned[slot].copy_(waveforms)
            with torch.cuda.stream(uploading):
                uploading.wait_event(computed[slot])  # so is the device's
                there[slot].copy_(pinned[slot], non_blocking=True)
                uploaded[slot].record(uploading)
            computing.wait_event(uploaded[slot])
            results.append(setup.sums(there[slot], own_lengths))
            computed[slot].record(computing)
        return torch.stack(results).cpu().numpy()[-1]  # type: ignore[no-any-return]

    yield run


EXACT = "float32, no TF32"
AS_WORKERS = "as workers run it"
WAYS: Mapping[str, Callable[[Setup], AbstractContextManager[Run]]] = {
    EXACT: lambda setup: _flags(setup, allow_tf32=False),
    AS_WORKERS: _as_workers,
    "no upload": _there_already,
    "mel picture on the CPU": _mel_on_cpu,
    "not channels last": _not_channels_last,
    "cuDNN searches": lambda setup: _flags(setup, benchmark=True),
    "float16": lambda setup: _half(setup, torch.float16),
    "bfloat16": lambda setup: _half(setup, torch.bfloat16),
    "torch.compile": _compiled,
    "CUDA graph": _graph,
    "CUDA graph, float16": lambda setup: _graph(setup, torch.float16),
    "pinned upload": _pinned,
    "pinned, the next meanwhile": _double_buffered,
}
FOR_GPU = {"CUDA graph", "CUDA graph, float16", "pinned upload", "pinned, the next meanwhile"}
BATCHES = {"pinned, the next meanwhile": STREAM}  # in one run; of others it is one


def ways(setup: Setup) -> tuple[Rows, dict[str, str]]:
    """Measure every way; return its rows, and why others have none."""
    rows, failed = Rows(), dict[str, str]()
    exact: Floats | None = None
    for name, way in WAYS.items():
        if name in FOR_GPU and setup.device.type == "cpu":
            failed[name] = "is for GPUs"
            continue
        try:
            with torch.inference_mode(), way(setup) as run:
                found = run()
                took = seconds_of(run, setup.budget_s) / BATCHES.get(name, 1)
        except Exception as error:  # noqa: BLE001 - the others are measured all the same
            failed[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        exact = found if exact is None else exact
        rows[name] = {
            "clips/s": len(setup.windows) / took,
            "times workers": math.nan,
            **parity(found, exact),
        }
    for row in rows.values():
        row["times workers"] = row["clips/s"] / rows[AS_WORKERS]["clips/s"]
    return rows, failed


def parity(found: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Return how near vectors come to exact ones: the worst of them."""
    found, exact = found.astype(np.float64), exact.astype(np.float64)  # whose rounding is seen
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(exact, axis=1)
    cosines = (found * exact).sum(1) / lengths
    return {
        "(1 - cosine) 1e6": 1e6 * float(1 - cosines.min()),
        "max |d| 1e6": 1e6 * float(np.abs(found - exact).max() / np.abs(exact).max()),
    }


def shipped_parity(device: str, sounds: Sequence[Sequence[Samples]]) -> Rows:
    """Return how near the shipped encoder comes to float32 on a CPU, on real sounds with a text."""
    encoder = prepare(default_encoder())

    def items() -> Floats:
        heard = AudioEmbedding.stack([encoder.encode_audio(windows) for windows in sounds])
        return encoder.fuse(heard, [" ".join(WORDS)] * len(sounds)).vectors

    exact, rows = items(), Rows()
    encoder.model.to(device)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        encoder.runtime = TorchRuntime(encoder.model, dtype)
        rows[str(dtype).removeprefix("torch.")] = parity(items(), exact)
    return rows
