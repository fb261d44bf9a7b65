"""The folders of ``releases``, for loaders and benchmarks."""

from releases import audiocaps, clotho, put

__all__ = ["audiocaps", "clotho", "put"]  # fixtures
