"""ONNX Runtime's runtime: a bundle's graphs on a CPU, without PyTorch and transformers."""

import os
from pathlib import Path

# Since 1.29 its packages tell Microsoft which models are run, and keep an identifier of the machine
# in the home folder; that is decided once, when it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from audiofuse.core.audio.windows import Samples
from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats, WindowEmbedding
from audiofuse.core.encoder.processing import Tokens
from audiofuse.core.model.config import EncoderConfig
from audiofuse.core.model.mel import MelPicture

AUDIO_GRAPH, TEXT_GRAPH = "audio_tower.onnx", "text_tower.onnx"
METADATA_GRAPH, FUSION_GRAPH = "metadata_tower.onnx", "fusion.onnx"
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
VECTOR, HIDDEN = "vector", "hidden"  # what text towers' graphs give


class OnnxRuntime:
    """Runs a bundle's graphs on the CPU, each with its own session."""

    name = "onnxruntime"
    device = "cpu"
    few_shapes = False

    def __init__(self, folder: Path, config: EncoderConfig, threads: int) -> None:
        """Load the graphs of a bundle; ``threads`` compute, and sleep between two calls.

        Raises ``ValueError`` for a file that is no graph.
        """
        self._config = config
        self._mel = MelPicture(config.audio.mel_bands, config.audio.hop_samples)
        self._audio = _session(folder / AUDIO_GRAPH, threads)
        self._text = _session(folder / TEXT_GRAPH, threads)
        own = config.metadata is not None
        self._metadata = _session(folder / METADATA_GRAPH, threads) if own else self._text
        self._fusion = _session(folder / FUSION_GRAPH, threads) if config.uses_audio else None
        self.audio_dim: int = self._audio.get_outputs()[0].shape[2]

    def encode_windows(
        self, waveforms: Samples, lengths: NDArray[np.int32], *, frames: bool = False
    ) -> list[WindowEmbedding]:
        """See ``Runtime``."""
        sequences = _run(self._audio, "frames", mel=self._mel(waveforms))
        steps, samples = sequences.shape[1], waveforms.shape[1]
        heard = (lengths.astype(np.int64) * steps + samples - 1) // samples
        embeddings = []
        for sequence, count in zip(sequences, heard.tolist(), strict=True):
            own = sequence[:count]
            kept = own.copy() if frames or self._config.fusion == "mid" else None
            embeddings.append(WindowEmbedding(own.sum(0), count, kept))
        return embeddings

    def encode_text(self, tokens: Tokens) -> Floats:
        """See ``Runtime``."""
        return _read(self._text, VECTOR, tokens)

    def encode_metadata(self, tokens: Tokens) -> Floats:
        """See ``Runtime``."""
        return _read(self._metadata, VECTOR, tokens)

    def fuse(self, audio: AudioEmbedding, metadata: Tokens) -> Floats:
        """See ``Runtime``."""
        if self._config.fusion == "mid":
            return self._fuse_mid(audio, metadata)
        items = self.project_audio(audio.pooled)
        if self._config.fusion == "audio":
            return items
        if self._config.absent == "empty":
            return items + self.encode_metadata(metadata)
        there = metadata.present
        if there.any():  # the tower takes as long for no words as for some
            ids, mask = metadata.ids[there], metadata.mask[there]
            items[there] += self.encode_metadata(Tokens(ids, mask, there[there]))
        return items

    def _fuse_mid(self, audio: AudioEmbedding, metadata: Tokens) -> Floats:
        assert self._fusion is not None
        assert audio.frames is not None
        assert audio.valid is not None
        return _run(
            self._fusion,
            "items",
            frames=audio.frames,
            heard=audio.valid,
            tokens=_read(self._metadata, HIDDEN, metadata),
            there=metadata.mask.astype(np.bool_),
            present=metadata.present,
        )

    def project_audio(self, pooled: Floats) -> Floats:
        """See ``Runtime``."""
        if self._fusion is None:
            return np.zeros((len(pooled), self._config.dim), np.float32)
        return _run(self._fusion, "items", pooled=pooled)

    def free_memory(self) -> None:
        """See ``Runtime``; nothing is kept for later batches."""


def _session(graph: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait for each other spinning take the CPU from decoders, and a container's quota.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Batches come in many shapes, and a plan of memory would be kept for each. The arena, which
    # keeps what the largest batch needed until the session goes, is worth it: see DECISIONS.md.
    options.enable_mem_pattern = False
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it raises a class of its own for each way a file can be wrong
        raise ValueError(f"{graph.name} is no graph that can be run: {error}") from error


def _read(tower: ort.InferenceSession, output: str, tokens: Tokens) -> Floats:
    given = dict(
        zip(TEXT_INPUTS, (tokens.ids, tokens.mask, np.zeros_like(tokens.ids)), strict=True)
    )
    taken = {each.name for each in tower.get_inputs()}  # some families know no types
    return _run(tower, output, **{name: given[name] for name in taken})


def _run(session: ort.InferenceSession, output: str, **inputs: np.ndarray) -> Floats:
    (result,) = session.run([output], inputs)
    return result  # type: ignore[no-any-return]
