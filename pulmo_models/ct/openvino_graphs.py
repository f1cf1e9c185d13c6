"""The networks as graphs of OpenVINO (opset 13), with the weights of the torch modules.

That takes some milliseconds, where a conversion by tracing takes seconds; `tests/models/test_engine.py` holds graph and
module against each other. The read-out of stage 1, a convolution of one voxel, is written as product and sum: OpenVINO
keeps what follows the last convolution in float32, so in bf16 the logits are not rounded to the few hundred values on
which every peak of a heat map would be a plateau.

``openvino`` is handed in, so that nothing here imports it. Shapes begin with the number of items, -1 for any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from pulmo_models.nets.heatmap_unet3d import ConvBlock3D, HeatmapUNet3D
from pulmo_models.nets.student2p5d import Detection2p5D, ResBlock2D, Student2p5D, UNet2D

OUTPUTS: dict[type[nn.Module], tuple[str, ...]] = {
    HeatmapUNet3D: ("output",),
    Student2p5D: ("detection", "concepts", "malignancy", "segmentation"),
    Detection2p5D: ("detection",),
}
"""Names of a graph's outputs, in order; those of the module."""


class _Drawing:
    """The layers that the networks are made of, in ``axes`` dimensions of space."""

    def __init__(self, openvino: Any, axes: int) -> None:
        self.op = openvino.opset13
        self.axes = axes
        self.zeros, self.ones, self.twos = ([value] * axes for value in (0, 1, 2))

    def constant(self, values: Tensor | Sequence[float] | None) -> Any:
        """A constant in float32; the layers of both networks that are drawn with a bias have one."""
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
        return self.op.constant(np.asarray(array, dtype=np.float32))

    def along_channels(self, values: Tensor | None) -> Any:
        """A value for each channel, to be broadcast over a batch."""
        if values is None:
            raise ValueError("the layer has no bias")
        return self.constant(values.reshape(1, -1, *self.ones))

    def convolve(self, x: Any, layer: nn.Conv2d | nn.Conv3d, padding: int) -> Any:
        """A convolution at stride 1, its bias left out."""
        pads = [padding] * self.axes
        return self.op.convolution(x, self.constant(layer.weight), self.ones, pads, pads, self.ones)

    def normalise(self, x: Any, norm: nn.InstanceNorm2d | nn.InstanceNorm3d) -> Any:
        """Instance norm."""
        space = np.arange(2, 2 + self.axes, dtype=np.int64)
        return self.op.mvn(x, space, True, norm.eps, "inside_sqrt")

    def activate(self, x: Any, layer: nn.LeakyReLU) -> Any:
        """Leaky ReLU."""
        return self.op.prelu(x, self.constant([layer.negative_slope]))

    def halve(self, x: Any) -> Any:
        """Maximum of blocks of 2 in every dimension."""
        return self.op.max_pool(x, self.twos, self.ones, self.zeros, self.zeros, self.twos).output(0)

    def double(self, x: Any, layer: nn.ConvTranspose2d | nn.ConvTranspose3d) -> Any:
        """Transposed convolution of stride 2."""
        weight = self.constant(layer.weight)
        x = self.op.convolution_backprop_data(x, weight, self.twos, None, self.zeros, self.zeros, self.ones)
        return self.op.add(x, self.along_channels(layer.bias))

    def join(self, upper: Any, skip: Any) -> Any:
        """Channels of both, the upsampled first."""
        return self.op.concat([upper, skip], 1)

    def linear(self, x: Any, layer: nn.Linear) -> Any:
        """A fully connected layer."""
        return self.op.add(self.op.matmul(x, self.constant(layer.weight), False, True), self.constant(layer.bias))

    def residual(self, x: Any, layers: ResBlock2D) -> Any:
        """A block of stage 2."""
        y = self.activate(self.normalise(self.convolve(x, layers.conv1, 1), layers.norm1), layers.act)
        y = self.normalise(self.convolve(y, layers.conv2, 1), layers.norm2)
        skip = self.convolve(x, layers.skip, 0) if isinstance(layers.skip, nn.Conv2d) else x
        return self.activate(self.op.add(y, skip), layers.act)

    def encode(self, x: Any, cnn: UNet2D) -> list[Any]:
        """The features of every level of stage 2, the finest first."""
        found = [self.residual(x, cnn.stem)]
        for down in (cnn.down1, cnn.down2, cnn.down3, cnn.bottom):
            found.append(self.residual(self.halve(found[-1]), cast(ResBlock2D, down[1])))
        return found

    def pool(self, x: Any) -> Any:
        """The mean of every channel."""
        return self.op.reduce_mean(x, np.array([2, 3], dtype=np.int64), False)

    def head(self, x: Any, layers: nn.Sequential) -> Any:
        """A head of stage 2 on the pooled feature."""
        norm, first, _, _, last = cast("tuple[nn.LayerNorm, nn.Linear, nn.Module, nn.Module, nn.Linear]", tuple(layers))
        x = self.op.mvn(x, np.array([1], dtype=np.int64), True, norm.eps, "inside_sqrt")
        x = self.op.add(self.op.multiply(x, self.constant(norm.weight)), self.constant(norm.bias))
        return self.linear(self.op.gelu(self.linear(x, first), "erf"), last)


def stage1_graph(openvino: Any, network: HeatmapUNet3D, shape: tuple[int, ...]) -> Any:
    """`HeatmapUNet3D.forward` for windows of shape ``(B, 1, D, H, W)``."""
    draw = _Drawing(openvino, axes=3)
    op = draw.op

    def block(x: Any, layers: ConvBlock3D) -> Any:
        for convolution, norm in ((layers.c1, layers.n1), (layers.c2, layers.n2)):
            x = draw.activate(draw.normalise(draw.convolve(x, convolution, 1), norm), layers.a)
        return x

    given = op.parameter(list(shape), np.float32)
    e1 = block(given, network.e1)
    e2 = block(draw.halve(e1), network.e2)
    e3 = block(draw.halve(e2), network.e3)
    e4 = block(draw.halve(e3), network.e4)
    x = block(draw.halve(e4), network.bott)
    for up, layers, encoded in (
        (network.u4, network.d4, e4),
        (network.u3, network.d3, e3),
        (network.u2, network.d2, e2),
        (network.u1, network.d1, e1),
    ):
        x = block(draw.join(draw.double(x, up), encoded), layers)
    weighted = op.multiply(x, draw.along_channels(network.out.weight))
    summed = op.reduce_sum(weighted, np.array([1], dtype=np.int64), True)
    return openvino.Model([op.add(summed, draw.along_channels(network.out.bias))], [given], "stage1")


def stage2_graph(openvino: Any, network: Student2p5D, shape: tuple[int, ...]) -> Any:
    """`Student2p5D.forward` in evaluation mode for inputs of shape ``(B, 7, H, W)``."""
    draw = _Drawing(openvino, axes=2)
    op, cnn = draw.op, network.cnn
    given = op.parameter(list(shape), np.float32)
    *skips, y = draw.encode(given, cnn)
    feature = draw.pool(y)
    ups = ((cnn.up4, cnn.dec4), (cnn.up3, cnn.dec3), (cnn.up2, cnn.dec2), (cnn.up1, cnn.dec1))
    for (up, layers), skip in zip(ups, reversed(skips), strict=True):
        y = draw.residual(draw.join(draw.double(y, up), skip), layers)
    segmentation = op.add(draw.convolve(y, cnn.final, 0), draw.along_channels(cnn.final.bias))
    concepts = draw.head(feature, network.concept_head)
    malignancy = draw.linear(concepts, network.malignancy_head)
    outputs = [draw.head(feature, network.detection_head), concepts, malignancy, segmentation]
    return openvino.Model(outputs, [given], "stage2")


def detection_graph(openvino: Any, network: Detection2p5D, shape: tuple[int, ...]) -> Any:
    """`Detection2p5D.forward` in evaluation mode for inputs of shape ``(B, 7, H, W)``."""
    draw = _Drawing(openvino, axes=2)
    given = draw.op.parameter(list(shape), np.float32)
    feature = draw.pool(draw.encode(given, network.cnn)[-1])
    return openvino.Model([draw.head(feature, network.detection_head)], [given], "detection")
