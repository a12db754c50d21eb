"""The networks of `pixeldefend.models.classifiers` in torch, and weights either way."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

STAGES = {"paper": 10, "code": 5}  # units of a stage of the ResNet
BLOCKS = {  # of the VGG network: feature maps and convolutions
    "paper": ((16, 2), (128, 2), (512, 3), (512, 3)),
    "code": ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
}


def standardise(images: torch.Tensor) -> torch.Tensor:
    """Each image [B, C, H, W] to mean 0 and deviation 1; `classifiers.standardise`."""
    centred = images - images.mean((1, 2, 3), keepdim=True)
    variance = centred.square().mean((1, 2, 3), keepdim=True)
    floor = 1.0 / (images.shape[2] * images.shape[3] * 3)
    return centred / variance.clamp_min(floor).sqrt()


class Conv(nn.Conv2d):
    """3 x 3 without bias, padded as XLA's SAME: of stride two only below and right."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(inputs, outputs, 3, stride, 0 if stride > 1 else 1, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.stride[0] > 1:
            images = functional.pad(images, (0, 1, 0, 1))
        return super().forward(images)


def norm(features: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(features, eps=1e-3, momentum=0.1)


class Unit(nn.Module):
    """A pre-activation residual unit; its shortcut pools and adds zero channels."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), Conv(inputs, outputs, stride)
        self.norm2, self.conv2 = norm(outputs), Conv(outputs, outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(functional.leaky_relu(self.norm1(x), 0.1))
        y = self.conv2(functional.leaky_relu(self.norm2(y), 0.1))
        if self.stride > 1:
            x = functional.avg_pool2d(x, self.stride)
        before = self.more // 2
        x = functional.pad(x, (0, 0, 0, 0, before, self.more - before))
        return x + y


class ResNet(nn.Module):
    """ResNet of `pixeldefend.models.classifiers`, of floating levels [B, C, H, W]."""

    def __init__(self, variant: str, divisor: int, channels: int, classes: int):
        super().__init__()
        self.first = Conv(channels, 16 // divisor)
        units, inputs = [], 16 // divisor
        for stage, width in enumerate((16, 32, 64)):
            for unit in range(STAGES[variant]):
                stride = 2 if stage and not unit else 1
                units.append(Unit(inputs, width // divisor, stride))
                inputs = width // divisor
        self.units = nn.Sequential(*units)
        self.norm = norm(inputs)
        self.dense = nn.Linear(inputs, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.units(self.first(standardise(images)))
        return self.dense(functional.leaky_relu(self.norm(x), 0.1).mean((2, 3)))

    def layers(self) -> tuple[list, list, list]:
        """Convolutions, norms and dense layers, in the order of the Linen modules."""
        convs, norms = [self.first], []
        for unit in self.units:
            convs += [unit.conv1, unit.conv2]
            norms += [unit.norm1, unit.norm2]
        return convs, [*norms, self.norm], [self.dense]


class VGG(nn.Module):
    """VGG of `pixeldefend.models.classifiers`, of floating levels [B, C, H, W]."""

    def __init__(self, variant: str, divisor: int, channels: int, classes: int):
        super().__init__()
        self.blocks = nn.ModuleList()
        inputs = channels
        for width, convolutions in BLOCKS[variant]:
            block = nn.ModuleList()
            for _ in range(convolutions):
                block += [Conv(inputs, width // divisor), norm(width // divisor)]
                inputs = width // divisor
            self.blocks.append(block)
        # Dense layers are drawn as Linen draws them: the variance is 1 / inputs.
        places = (32 >> len(self.blocks)) ** 2
        self.dense1 = nn.Linear(places * inputs, 512 // divisor)
        self.dense2 = nn.Linear(512 // divisor, classes)
        for layer in (self.dense1, self.dense2):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = standardise(images)
        for block in self.blocks:
            for conv, normed in zip(block[::2], block[1::2], strict=True):
                x = functional.relu(normed(conv(x)))
            x = functional.max_pool2d(x, 2, ceil_mode=True)
        x = x.permute(0, 2, 3, 1).flatten(1)  # as Linen flattens
        x = functional.dropout(x, 0.5, self.training)
        x = functional.dropout(functional.relu(self.dense1(x)), 0.5, self.training)
        return self.dense2(x)

    def layers(self) -> tuple[list, list, list]:
        """Convolutions, norms and dense layers, in the order of the Linen modules."""
        convs = [conv for block in self.blocks for conv in block[::2]]
        norms = [normed for block in self.blocks for normed in block[1::2]]
        return convs, norms, [self.dense1, self.dense2]


NETWORKS = {"resnet": ResNet, "vgg": VGG}


def flax_variables(network: nn.Module) -> dict[str, np.ndarray]:
    """The weights as leaves of our variables, by path: "params/Conv_0/kernel"."""
    leaves = _leaves(network).items()
    return {k: v.detach().float().contiguous().numpy() for k, v in leaves}


def _leaves(network: nn.Module) -> dict[str, torch.Tensor]:
    """Views of the weights, with their axes as ours, by path."""
    convs, norms, denses = network.layers()
    leaves = {}
    for i, conv in enumerate(convs):
        leaves[f"params/Conv_{i}/kernel"] = conv.weight.permute(2, 3, 1, 0)
    for i, layer in enumerate(norms):
        name = f"BatchNorm_{i}"
        leaves[f"params/{name}/scale"] = layer.weight
        leaves[f"params/{name}/bias"] = layer.bias
        leaves[f"batch_stats/{name}/mean"] = layer.running_mean
        leaves[f"batch_stats/{name}/var"] = layer.running_var
    for i, layer in enumerate(denses):
        leaves[f"params/Dense_{i}/kernel"] = layer.weight.T
        leaves[f"params/Dense_{i}/bias"] = layer.bias
    return leaves


def of_variables(model: Any, variables: dict) -> nn.Module:
    """The torch network, of levels [B, C, H, W], with the weights of one of ours.

    Args:
      model: a ResNet or VGG of `pixeldefend.models.classifiers`.
      variables: its.
    """
    name = type(model).__name__.lower()
    channels = variables["params"]["Conv_0"]["kernel"].shape[2]
    network = NETWORKS[name](model.variant, model.divisor, channels, model.classes)
    with torch.no_grad():
        for path, leaf in _leaves(network).items():
            given = variables
            for part in path.split("/"):
                given = given[part]
            leaf.copy_(torch.tensor(np.asarray(given)))
    return network.eval().requires_grad_(False)


def to_torch(images: np.ndarray) -> torch.Tensor:
    """Levels `[B, H, W, C]` as attacks in torch take them: 0..1, [B, C, H, W]."""
    return torch.tensor(images.astype(np.float32) / 255).permute(0, 3, 1, 2)


def from_torch(images: torch.Tensor) -> np.ndarray:
    """The nearest levels, uint8, of what such attacks find; undoes `to_torch`."""
    levels = torch.round(255 * images).permute(0, 2, 3, 1)
    return levels.numpy().astype(np.uint8)
