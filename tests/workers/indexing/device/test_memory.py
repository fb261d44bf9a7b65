"""A device's process has in memory what its largest batch needs, however long it runs."""

from pathlib import Path

from mixed_batches import encode_mixed, resident_mib

from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.settings import Settings
from audiofuse.workers.indexing.device.encoders import Encoders

BATCHES, MOST, SECONDS, SWAPS = 120, 3, 2, 10
MOST_MIB = 8.0  # that either may add; encoders that stay would add 10 each


def test_mixed_batches_and_swaps_leave_memory_as_it_is(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    """By ONNX Runtime, batches of all sizes add nothing, and encoders go with what they took."""
    other = Encoder.random(tiny_encoder.config, seed=1)
    versions = [
        save_bundle(each, tmp_path / "encoders", "any", "").name for each in (tiny_encoder, other)
    ]
    encoders = Encoders(Settings(home=tmp_path, device="cpu", batch_s=40), lambda: 0)

    def encode(version: str, batches: int, seed: int) -> float:
        device = encoders.device(version)
        assert device
        encode_mixed(device.encoder, batches, MOST, SECONDS, seed)
        return resident_mib()

    def swap(number: int) -> float:
        gone, following = versions[number % 2], versions[(number + 1) % 2]
        encoders.use(following)  # beside the one before, as in a rollout
        encoders.drop(gone)
        return encode(following, 10, seed=number)

    encoders.use(versions[0])
    first = encode(versions[0], BATCHES, seed=0)
    assert encode(versions[0], BATCHES, seed=1) < first + MOST_MIB
    first = max(swap(0), swap(1))
    assert max(map(swap, range(2, SWAPS))) < first + MOST_MIB
    encoders.drop(versions[0])
