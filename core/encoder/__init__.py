"""From samples and words to vectors.

``processing`` (windows to padded batches), ``frontend`` (log-mel spectrogram), ``mobilenet`` (audio
tower), ``text`` (text tower), ``fusion`` (mid-level), ``accumulator`` (windows to a clip),
``encoder`` (all of them: late fusion), ``inference`` (faster, same numbers), ``pretrained``
(checkpoints), ``starting`` (encoders to start with), ``query_tower`` (ONNX export).
"""
