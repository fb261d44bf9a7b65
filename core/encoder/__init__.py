"""From samples and words to vectors, as arrays.

``processing`` (windows to batches, texts to tokens), ``runtime`` (what computes), ``torch_runtime``
(PyTorch's), ``embeddings`` (what comes out), ``accumulator`` (windows to a clip), ``encoder`` (all
of them), ``inference`` (faster, same numbers), ``pretrained`` (checkpoints), ``starting`` (encoders
to start with), ``query_tower`` (ONNX export).
"""
