"""From samples and words to vectors, as arrays.

``processing`` (windows to batches, texts to tokens), ``runtime`` (what computes), ``torch_runtime``
(PyTorch's), ``onnx_runtime`` (ONNX Runtime's), ``embeddings`` (what comes out), ``accumulator``
(windows to a clip), ``encoder`` (all of them), ``inference`` (PyTorch faster, same numbers),
``pretrained`` (checkpoints), ``starting`` (encoders to start with), ``graphs`` (ONNX export),
``query_tower`` (the same for those who ask without us).
"""
