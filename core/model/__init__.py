"""The model: tensors in, tensors out.

``config`` (its shape, without PyTorch), ``frontend`` (log-mel spectrogram), ``mobilenet`` (audio
tower), ``text`` (text tower), ``fusion`` (mid-level), ``hybrid`` (all of them: late fusion).
"""
