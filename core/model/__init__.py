"""The model: tensors in, tensors out.

``config`` (its shape, without PyTorch), ``relevance`` (what its scores mean, likewise), ``mel``
(log-mel spectrogram, likewise), ``frontend`` (the same by PyTorch), ``mobilenet`` (audio tower),
``text`` (text tower), ``fusion`` (mid-level), ``hybrid`` (all of them: late fusion).
"""
