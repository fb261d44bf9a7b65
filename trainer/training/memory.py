"""How many pairs may be encoded at once: what one keeps for its gradient, and what is free."""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from audiofuse.core.memory import memory_limit, memory_used
from audiofuse.trainer.data.batches import Example

log = logging.getLogger(__name__)

# Of the free memory. Gradients and what one layer needs come on top; more runs out of it sooner,
# less encodes fewer pairs at once. On a GPU what is too much is halved; on a CPU the kernel kills.
FREE_SHARE = 0.5
ROOT = Path("/")  # where ``proc`` and ``sys`` are

Encode = Callable[[Sequence[Example]], object]


def pairs_that_fit(encode: Encode, examples: Sequence[Example], device: torch.device) -> int:
    """Return how many of the examples may be encoded at once, from 1 to all of them.

    ``encode`` is done once, with the longest one; where the free memory is not known, all may.
    """
    free = free_bytes(device)
    if free is None:
        return len(examples)
    longest = max(examples, key=lambda each: sum(window.size for window in each.windows))
    kept = kept_bytes(encode, longest)
    fitting = max(1, min(len(examples), int(FREE_SHARE * free / max(kept, 1))))
    log.info("%.0f MiB a pair, %.0f MiB free: %d at once", kept / 2**20, free / 2**20, fitting)
    return fitting


def kept_bytes(encode: Encode, example: Example) -> int:
    """Return how much memory the encoding of one example keeps for the gradient.

    Weights are kept as well, but once for all examples, and count as nothing.
    """
    kept: dict[int, int] = {}

    def count(saved: Tensor) -> Tensor:
        if not saved.is_leaf:
            storage = saved.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return saved.detach()  # a result that its own graph keeps would never be let go

    with (
        torch.random.fork_rng(),
        torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved),
    ):
        encoded = encode([example])
    del encoded
    return sum(kept.values())


def free_bytes(device: torch.device) -> int | None:
    """Return how much memory is free where it is computed; ``None`` where nobody tells."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = (ROOT / "proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    available = next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    used = memory_used(ROOT)
    if math.isnan(used):  # in no control group
        return available
    return max(0, min(available, int(memory_limit(ROOT) - used)))
