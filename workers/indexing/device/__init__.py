"""One thread owns the GPU and batches across messages: ``device``; ``budget`` bounds what waits."""
