"""The encoder as ONNX graphs, by which a CPU runs it without PyTorch.

audio_tower.onnx      mel pictures to sequences of frames
text_tower.onnx       tokens to vectors, not of unit length; where mid fusion wants them, its tokens
metadata_tower.onnx   the metadata's own text tower, where it is not the queries'
fusion.onnx           what audio adds to an item; in mid fusion the item itself

They hold no weights: each one is a place in the bundle's safetensors file, beside which they lie.
So nothing is stored twice, no graph can disagree with the model, and loading one takes half the
time and memory of one that holds them, such as the query tower's (``query_tower``), which travels.
"""

import copy
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn

from audiofuse.core.encoder.onnx_runtime import (
    AUDIO_GRAPH,
    FUSION_GRAPH,
    HIDDEN,
    METADATA_GRAPH,
    TEXT_GRAPH,
    TEXT_INPUTS,
    VECTOR,
)
from audiofuse.core.model.fusion import AudioTensors, MidFusion, TextTokens
from audiofuse.core.model.hybrid import ClassHead, HybridEncoder
from audiofuse.core.model.text import TextTower

OPSET = 17  # the first in which a layer normalisation is one operator
UNIT = "embedding"  # a text's vector of unit length
Axes = dict[int, str]


class Part(nn.Module):
    """What is traced: a function of a module and tensors."""

    def __init__(self, module: nn.Module, run: Callable[..., Any]) -> None:
        """Trace ``run(module, *inputs)``."""
        super().__init__()
        self.module = module
        self._run = run

    def forward(self, *inputs: Tensor) -> Any:
        """Return what ``run`` does."""
        return self._run(self.module, *inputs)


@dataclass(frozen=True)
class Traced:
    """How a graph is traced: what, with which examples, and which of their axes are free."""

    part: Part
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    axes: Mapping[str, Axes]

    def graph(self, *, inline: bool) -> onnx.ModelProto:
        """Trace it: weights ``inline`` as they suit the graph, else each under its own name."""
        content = io.BytesIO()
        mode = torch.onnx.TrainingMode
        with warnings.catch_warnings(), torch.no_grad():
            # That this exporter is the older one (why: DECISIONS.md), and that a trace may not hold
            # for other shapes, which tests see to.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                self.part.eval(), tuple(self.inputs.values()), content, dynamo=False,  # type: ignore[arg-type]  # it may be a file
                input_names=list(self.inputs), output_names=list(self.outputs),
                dynamic_axes=self.axes, opset_version=OPSET, do_constant_folding=inline,
                training=mode.EVAL if inline else mode.PRESERVE,
            )  # fmt: skip
        model = onnx.load_model_from_string(content.getvalue())
        model.producer_version = ""  # would give each release of torch its own bundle version
        return model


def traced_text(tower: TextTower, outputs: Sequence[str]) -> Traced:
    """Return how a text tower is traced that gives these ``outputs``; it is changed by that."""
    tower.bert.set_attn_implementation("eager")  # the plainest graph, and the fastest one

    def read(tower: TextTower, ids: Tensor, mask: Tensor, types: Tensor) -> list[Tensor]:
        hidden = tower.bert(
            input_ids=ids, attention_mask=mask, token_type_ids=types
        ).last_hidden_state
        vector = tower.embed(hidden, mask)
        unit = nn.functional.normalize(vector)
        given = {UNIT: unit, VECTOR: vector, HIDDEN: hidden}
        return [given[name] for name in outputs]

    ids = torch.zeros(2, 3, dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    free = {0: "batch", 1: "sequence"}
    axes = dict.fromkeys((*TEXT_INPUTS, HIDDEN), free) | {
        name: {0: "batch"} for name in (UNIT, VECTOR)
    }
    named = {name: axes[name] for name in (*TEXT_INPUTS, *outputs)}
    inputs = dict(zip(TEXT_INPUTS, (ids, mask, ids), strict=True))
    return Traced(Part(tower, read), inputs, outputs, named)


def serialised(graph: onnx.ModelProto) -> bytes:
    """Return a graph's bytes, the same for the same graph."""
    return graph.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def export_graphs(model: HybridEncoder, weights: Path) -> None:
    """Write the graphs beside ``weights``, the model's safetensors file; the model stays as it is.

    The same model always gives the same bytes.
    """
    places = _places(weights)
    for name, (prefix, traced) in _graphs(copy.deepcopy(model).cpu()).items():
        graph = traced.graph(inline=False)
        for tensor in graph.graph.initializer:
            place = places.get(tensor.name.replace("module.", prefix, 1))
            if place:  # else a constant, such as positions: in no checkpoint
                set_external_data(tensor, weights.name, *place)
                tensor.ClearField("raw_data")
        (weights.parent / name).write_bytes(serialised(graph))


def _places(weights: Path) -> dict[str, tuple[int, int]]:
    """Return where in a safetensors file each tensor lies, and how long it is, in bytes."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    spans = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: (8 + length + start, end - start) for name, (start, end) in spans.items()}


def _graphs(model: HybridEncoder) -> dict[str, tuple[str, Traced]]:
    """Return the graphs by file, with what the names of their weights begin with in the model."""
    config = model.config
    mid, shared = config.fusion == "mid", model.separate_metadata_tower is None
    texts = traced_text(model.text_tower, [VECTOR, HIDDEN] if mid and shared else [VECTOR])
    graphs = {
        AUDIO_GRAPH: ("audio_tower.", _traced_audio(model)),
        TEXT_GRAPH: ("text_tower.", texts),
    }
    if mid:
        graphs[FUSION_GRAPH] = "mid_fusion.", _traced_mid_fusion(model)
    elif config.uses_audio:
        graphs[FUSION_GRAPH] = "", _traced_projection(model)
    if not shared:
        words = traced_text(model.metadata_tower, [HIDDEN if mid else VECTOR])
        graphs[METADATA_GRAPH] = "separate_metadata_tower.", words
    return graphs


def _traced_audio(model: HybridEncoder) -> Traced:
    part = Part(model.audio_tower, lambda tower, mel: tower.frames(mel))
    inputs = {"mel": torch.zeros(2, model.config.audio.mel_bands, 65)}
    axes = {"mel": {0: "windows", 2: "columns"}, "frames": {0: "windows", 1: "steps"}}
    return Traced(part, inputs, ["frames"], axes)


def _traced_projection(model: HybridEncoder) -> Traced:
    if isinstance(model.audio_head, ClassHead):
        model.audio_head = _PreciseClassHead(model.audio_head)
    part = Part(model, lambda model, pooled: model.project_audio(pooled))
    inputs = {"pooled": torch.zeros(2, model.audio_tower.channels)}
    return Traced(part, inputs, ["items"], {name: {0: "items"} for name in ("pooled", "items")})


def _traced_mid_fusion(model: HybridEncoder) -> Traced:
    def fuse(fusion: MidFusion, *inputs: Tensor) -> Any:
        frames, heard, tokens, there, present = inputs
        audio = AudioTensors(frames.mean(1), frames, heard)  # mid fusion pools by itself
        return fusion(audio, TextTokens(tokens, there, present))

    fusion = model.mid_fusion
    fusion.layers = _PlainLayers(fusion.layers)  # type: ignore[assignment]

    inputs = {
        "frames": torch.zeros(2, 3, model.audio_tower.channels),
        "heard": torch.ones(2, 3, dtype=torch.bool),
        "tokens": torch.zeros(2, 4, model.metadata_tower.hidden),
        "there": torch.ones(2, 4, dtype=torch.bool),
        "present": torch.ones(2, dtype=torch.bool),
    }
    second = {"frames": "steps", "heard": "steps", "tokens": "tokens", "there": "tokens"}
    axes = {name: {0: "items"} for name in (*inputs, "items")}
    for name, axis in second.items():
        axes[name][1] = axis
    return Traced(Part(fusion, fuse), inputs, ["items"], axes)


class _PreciseClassHead(nn.Module):
    """What ``ClassHead`` computes, of exponentials.

    ONNX Runtime's sigmoid is right to 1e-7, whose root in a class that is nearly impossible is far
    more than what other rounding does to an item.
    """

    def __init__(self, head: ClassHead) -> None:
        super().__init__()
        self.embeddings = head.embeddings

    def forward(self, logits: Tensor) -> Tensor:
        return self.embeddings((1 + (-logits).exp()).rsqrt())  # type: ignore[no-any-return]


class _PlainLayers(nn.Module):
    """What ``nn.TransformerEncoder`` computes before evaluation's short cuts, for any length.

    The exporter takes its reshaping for the example's own length, and has no operator for those.
    """

    def __init__(self, encoder: nn.TransformerEncoder) -> None:
        super().__init__()
        self.layers = encoder.layers

    def forward(self, sequence: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        for layer in self.layers:
            sequence = sequence + _attend(
                layer.self_attn, layer.norm1(sequence), src_key_padding_mask
            )
            widened = layer.activation(layer.linear1(layer.norm2(sequence)))
            sequence = sequence + layer.linear2(widened)
        return sequence


def _attend(attention: nn.MultiheadAttention, x: Tensor, padding: Tensor) -> Tensor:
    """Attend to what is no padding: ``(items, steps, width)``; the shape stays."""
    joint = nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    heads = attention.num_heads, attention.head_dim
    query, key, value = (
        part.reshape(x.shape[0], x.shape[1], *heads).transpose(1, 2) for part in joint.chunk(3, -1)
    )
    scores = query @ key.transpose(2, 3) / math.sqrt(attention.head_dim)
    weights = scores.masked_fill(padding[:, None, None], -torch.inf).softmax(-1)
    return attention.out_proj((weights @ value).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
