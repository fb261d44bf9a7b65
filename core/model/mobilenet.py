"""The audio tower: MobileNetV3 as EfficientAT trains it on AudioSet, at any width.

Parameter names equal those of the released checkpoints, so an official state dict loads strictly
and unchanged (https://github.com/fschmid56/EfficientAT, release v0.0.1).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from audiofuse.core.model.config import Classifier

AUDIOSET_CLASSES = 527
STEM_CHANNELS = 16
LAST_EXPANSION = 6  # the last 1x1 convolution widens the last block six times
HIDDEN_CHANNELS = 1280  # of the classifier, before scaling by the width
SQUEEZE_FACTOR = 4
CHANNEL_DIVISOR = 8
DROPOUT = 0.2


class BlockShape(NamedTuple):
    """One row of the MobileNetV3-Large table, channels at width 1.0."""

    channels_in: int
    kernel: int
    expanded: int
    channels_out: int
    squeeze_excite: bool
    hardswish: bool
    stride: int


BLOCKS = tuple(
    BlockShape(*row)
    for row in (
        (16, 3, 16, 16, False, False, 1),
        (16, 3, 64, 24, False, False, 2),
        (24, 3, 72, 24, False, False, 1),
        (24, 5, 72, 40, True, False, 2),
        (40, 5, 120, 40, True, False, 1),
        (40, 5, 120, 40, True, False, 1),
        (40, 3, 240, 80, False, True, 2),
        (80, 3, 200, 80, False, True, 1),
        (80, 3, 184, 80, False, True, 1),
        (80, 3, 184, 80, False, True, 1),
        (80, 3, 480, 112, True, True, 1),
        (112, 3, 672, 112, True, True, 1),
        (112, 5, 672, 160, True, True, 2),
        (160, 5, 960, 160, True, True, 1),
        (160, 5, 960, 160, True, True, 1),
    )
)


def scale_channels(channels: float, divisor: int = CHANNEL_DIVISOR) -> int:
    """Round a channel count to a multiple of ``divisor``, never losing more than a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, activation; padded to keep the size at stride 1."""

    def __init__(  # noqa: PLR0913, PLR0917 - what defines a convolution
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] = nn.Identity,
    ) -> None:
        super().__init__(
            nn.Conv2d(
                channels_in, channels_out, kernel, stride, (kernel - 1) // 2,
                groups=groups, bias=False,
            ),
            nn.BatchNorm2d(channels_out, eps=1e-3, momentum=0.01),
            activation(),
        )  # fmt: skip


class ChannelSqueeze(nn.Module):
    """Squeeze-and-excitation over channels: each channel is scaled by what the whole clip holds."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, squeezed)
        self.fc2 = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``(batch, channels, bands, steps)``; the shape stays."""
        pooled = x.mean(dim=(2, 3))
        scale = torch.sigmoid(self.fc2(torch.relu(self.fc1(pooled))))
        return x * scale[:, :, None, None]


class ConcurrentSqueeze(nn.Module):
    """EfficientAT's wrapper for several squeezes; released models hold one, over channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conc_se_layers = nn.ModuleList([ChannelSqueeze(channels, squeezed)])

    def forward(self, x: Tensor) -> Tensor:
        """Apply the one squeeze; the shape stays."""
        return self.conc_se_layers[0](x)  # type: ignore[no-any-return]


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, squeeze, project; with a shortcut where the shape allows."""

    def __init__(self, shape: BlockShape, width: float) -> None:
        super().__init__()
        channels_in, expanded, channels_out = (
            scale_channels(n * width)
            for n in (shape.channels_in, shape.expanded, shape.channels_out)
        )
        activation = nn.Hardswish if shape.hardswish else nn.ReLU
        layers: list[nn.Module] = []
        if expanded != channels_in:
            layers.append(ConvNorm(channels_in, expanded, 1, activation=activation))
        layers.append(
            ConvNorm(expanded, expanded, shape.kernel, shape.stride, expanded, activation)
        )
        if shape.squeeze_excite:
            layers.append(ConcurrentSqueeze(expanded, scale_channels(expanded // SQUEEZE_FACTOR)))
        layers.append(ConvNorm(expanded, channels_out, 1))
        self.block = nn.Sequential(*layers)
        self.shortcut = shape.stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in, bands, steps)`` to ``(batch, out, bands/stride, steps/stride)``."""
        y: Tensor = self.block(x)
        return x + y if self.shortcut else y


class MobileNet(nn.Module):
    """MobileNetV3 over a mel picture, with one of EfficientAT's heads of AudioSet classes."""

    def __init__(
        self,
        width: float = 1.0,
        classifier: Classifier = "mlp",
        strides: Sequence[int] = (2, 2, 2, 2),
        classes: int = AUDIOSET_CLASSES,
    ) -> None:
        """Build the network at ``width`` (0.1 to 4.0 are released); weights are random.

        ``strides`` are those of the four blocks that halve the picture; released variants leave
        out the last one or two, for a finer sequence.
        """
        super().__init__()
        stem = scale_channels(STEM_CHANNELS * width)
        last = scale_channels(BLOCKS[-1].channels_out * width)
        hidden = scale_channels(HIDDEN_CHANNELS * width)
        self.channels = LAST_EXPANSION * last
        self.features = nn.Sequential(
            ConvNorm(1, stem, 3, stride=2, activation=nn.Hardswish),
            *(InvertedResidual(shape, width) for shape in _with_strides(strides)),
            ConvNorm(last, self.channels, 1, activation=nn.Hardswish),
        )
        self.classifier = (
            _mlp(self.channels, hidden, classes)
            if classifier == "mlp"
            else _fully_convolutional(self.channels, classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # PyTorch's own choice fades out over so many layers
                nn.init.kaiming_normal_(module.weight)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def feature_map(self, mel: Tensor) -> Tensor:
        """Map mel pictures ``(batch, 128, frames)`` to ``(batch, channels, 4, frames / 32)``."""
        return self.features(mel.unsqueeze(1))  # type: ignore[no-any-return]

    def frames(self, mel: Tensor) -> Tensor:
        """Map mel pictures ``(batch, 128, frames)`` to a sequence ``(batch, steps, channels)``.

        The feature map averaged over frequency (arXiv 2406.15897, authors' code).
        """
        return self.feature_map(mel).mean(dim=2).transpose(1, 2)

    def classify(self, pooled: Tensor) -> Tensor:
        """Map a pooled feature ``(batch, channels)`` to class logits ``(batch, classes)``.

        The fully convolutional head is affine in evaluation mode, so that classifying the mean
        over the picture equals its own order, the mean of what it says of each place.
        """
        return self.classifier(pooled[:, :, None, None]).flatten(1)  # type: ignore[no-any-return]


def _mlp(channels: int, hidden: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, hidden),
        nn.Hardswish(),
        nn.Dropout(DROPOUT),
        nn.Linear(hidden, classes),
    )


def _fully_convolutional(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, classes, 1, bias=False),
        nn.BatchNorm2d(classes),
        nn.AdaptiveAvgPool2d(1),
    )


def _with_strides(strides: Sequence[int]) -> Iterator[BlockShape]:
    """Yield the blocks with the given strides in place of those that halve the picture."""
    given = iter(strides)
    for shape in BLOCKS:
        yield shape if shape.stride == 1 else shape._replace(stride=next(given))
