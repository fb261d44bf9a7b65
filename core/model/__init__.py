"""The model: tensors in, tensors out.

``config`` (its shape, without PyTorch), ``relevance`` (what its scores mean, likewise), ``mel``
(log-mel spectrogram, likewise), ``classes`` (what AudioSet tells apart, in words), ``frontend``
(``mel`` by PyTorch), ``mobilenet`` (audio tower), ``text`` (text tower), ``fusion`` (mid-level),
``hybrid`` (all of them: late fusion).
"""
