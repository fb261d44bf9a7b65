"""Micro-batches: as many pairs as fit into what is free."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.model.config import TINY
from audiofuse.trainer.data.batches import Example
from audiofuse.trainer.training import memory
from audiofuse.trainer.training.memory import Encode, free_bytes, kept_bytes, pairs_that_fit
from audiofuse.trainer.training.step import Learner

CPU = torch.device("cpu")


def _example(seconds: int) -> Example:
    return Example([np.ones(32_000 * seconds, dtype=np.float32)], "words", "a sentence", 1)


@pytest.fixture(scope="module")
def encode() -> Encode:
    """Return what encodes as a small encoder is trained."""
    learner = Learner(Encoder.random(TINY, seed=0), 0.05, learned=False)
    return lambda examples: learner(learner.inputs(examples))


def test_a_longer_sound_keeps_more(encode: Encode) -> None:
    """What is kept for the gradient grows with the sound, is none without, and holds no weights."""
    short, long = (kept_bytes(encode, _example(seconds)) for seconds in (2, 8))
    assert 3 < long / short < 5
    with torch.no_grad():
        assert kept_bytes(encode, _example(2)) == 0
    linear = torch.nn.Linear(1000, 1000)
    assert kept_bytes(lambda _: linear(torch.ones(1, 1000)), _example(1)) == 0


def test_what_was_measured_is_let_go() -> None:
    """No graph stays that keeps its own result: its weights would stay with it, for ever."""
    weight, encoded = torch.ones(3, requires_grad=True), []

    def exponential(_examples: object) -> torch.Tensor:
        result = weight.exp()  # which its gradient needs
        encoded.append(weakref.ref(result))
        return result

    kept_bytes(exponential, _example(1))
    assert encoded[0]() is None


def test_as_many_pairs_as_fit(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what is free is used, by the longest sound; one pair at least, and no more than all.

    Nothing random is drawn for it.
    """
    examples = [_example(1), _example(4), _example(1)]
    kept, before = kept_bytes(encode, examples[1]), torch.random.get_rng_state()
    for free, fitting in ((4.1 * kept, 2), (kept, 1), (100 * kept, 3), (None, 3)):
        found = None if free is None else int(free)
        monkeypatch.setattr(memory, "free_bytes", lambda _device, found=found: found)
        assert pairs_that_fit(encode, examples, CPU) == fitting
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("limit", "free"), [("max", 4_000_000), ("5000000", 3_000_000), ("1000000", 0)]
)
def test_a_container_has_what_its_group_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, free: int
) -> None:
    """The least counts of what the machine has and what the control group grants."""
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9999 kB\nMemAvailable: 3906 kB\n")
    assert free_bytes(CPU) == pytest.approx(4_000_000, abs=1024)  # in no group
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(limit + "\n")
    (group / "memory.current").write_text("2500000\n")
    (group / "memory.stat").write_text("inactive_file 500000\n")  # merely cached
    assert free_bytes(CPU) == pytest.approx(free, abs=1024)
    (tmp_path / "proc/meminfo").unlink()
    assert free_bytes(CPU) is None
