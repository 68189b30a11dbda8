"""Backbones: the 28-layer network of Meta Face Recognition, and InsightFace's iResNets under InsightFace's names.

Both are stacks of one residual block (BatchNorm, convolution, BatchNorm, PReLU, convolution, BatchNorm; arXiv
1801.07698, section 2.2.1). Every operation has a double backward. Networks of others are built by external.py.
Shape suffixes: B = batch, D = embedding, H W = image.
"""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from fastmfr.config import Config
from fastmfr.config.choices import Backbone
from fastmfr.external import STRIDED_FROM, build_external, check_on_cpu, is_external

__all__ = ["IRESNET_BLOCKS", "NAMES", "Block", "IResNet", "MfrNet", "build", "build_backbone", "check_backbone"]

NAMES = get_args(Backbone)
IRESNET_BLOCKS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
    "iresnet200": (6, 26, 60, 6),
}


class Block(nn.Module):
    """A residual block of two 3 x 3 convolutions; no activation follows the sum.

    Args:
        width_in: Channels of the input.
        width: Channels of the output. If width or stride change the shape, the shortcut has a 1 x 1 convolution.
        stride: Of the second convolution.
    """

    def __init__(self, width_in: int, width: int, stride: int = 1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample, self.skip = None, 1
        if stride != 1 or width_in != width:
            if width_in < STRIDED_FROM:
                self.skip, stride = stride, 1
            self.downsample = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width_in, H, W) to (B, width, H / stride, W / stride), rounded up."""
        seen = x if self.skip == 1 else x[:, :, :: self.skip, :: self.skip]
        shortcut = x if self.downsample is None else self.downsample(seen)
        return self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x)))))) + shortcut


def _stage(width_in, width, blocks, stride):
    return nn.Sequential(Block(width_in, width, stride), *(Block(width, width) for _ in range(blocks - 1)))


def _initialise(network):
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)  # every convolution is followed by BatchNorm: scale is free


class MfrNet(nn.Module):
    """The network of Meta Face Recognition: a stem of two convolutions, four stages of blocks, global average pooling.

    The paper (arXiv 2003.07733) prints width x 0.5, 4.64M parameters, 256 outputs and 128.7M multiply-adds, but not the
    layout. This layout matches the size: 28 convolutions of 3 x 3 and 4.67M parameters. Its multiply-adds at 120 px are
    269M, so the authors' strides must differ.

    Args:
        embedding: Outputs D. None is 512 * width; another number adds a linear layer.
        width: Channels, as a multiple of 64 in the stem and of 64, 128, 256 and 512 in the stages.
        blocks: Residual blocks of each stage.
    """

    def __init__(self, embedding: int | None = None, width: float = 0.5, blocks: Sequence[int] = (3, 3, 4, 3)):
        super().__init__()
        stem, *widths = (round(width * base) for base in (64, 64, 128, 256, 512))
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.PReLU(stem),
            nn.Conv2d(stem, stem, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.PReLU(stem),
        )
        self.stages = nn.Sequential(
            *map(_stage, (stem, *widths), widths, blocks, (1, 2, 2, 2)),
        )
        self.bn = nn.BatchNorm2d(widths[-1])
        self.embedding = embedding or widths[-1]
        self.fc = nn.Identity() if self.embedding == widths[-1] else nn.Linear(widths[-1], self.embedding)
        _initialise(self)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Map images of 16 pixels or more a side to embeddings (B, D)."""
        return self.fc(self.bn(self.stages(self.stem(image_B3HW))).mean((2, 3)))


class IResNet(nn.Module):
    """InsightFace's iResNet; parameters are named as InsightFace's checkpoints name them.

    Args:
        blocks: Residual blocks of each of the four stages.
        embedding: Outputs D.
        image_size: Width and height of the images in pixels, a multiple of 16. The linear layer fixes the size; at 112
            the layer sees a grid of 7 x 7.
        dropout: Probability of a zero before the linear layer.

    Raises:
        ValueError: If the image size is no multiple of 16.
    """

    def __init__(self, blocks: Sequence[int], embedding: int = 512, image_size: int = 112, dropout: float = 0.0):
        super().__init__()
        if image_size % 16:
            raise ValueError(f"an iResNet wants an image size that is a multiple of 16, got {image_size}")
        self.embedding = embedding
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        self.layer1 = _stage(64, 64, blocks[0], 2)
        self.layer2 = _stage(64, 128, blocks[1], 2)
        self.layer3 = _stage(128, 256, blocks[2], 2)
        self.layer4 = _stage(256, 512, blocks[3], 2)
        self.bn2 = nn.BatchNorm2d(512)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512 * (image_size // 16) ** 2, embedding)
        self.features = nn.BatchNorm1d(embedding)
        nn.init.ones_(self.features.weight)
        self.features.weight.requires_grad = False  # the embedding's scale is meaningless under a cosine
        _initialise(self)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Map images of the size that the network was made for to embeddings (B, D)."""
        x = self.prelu(self.bn1(self.conv1(image_B3HW)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.dropout(self.bn2(x)).flatten(1)))


def build(
    name: str, embedding: int | None = None, *, width: float = 0.5, image_size: int = 112, dropout: float = 0.0
) -> nn.Module:
    """Build a backbone with fresh weights; it maps image_B3HW, with values in about [-1, 1], to embedding_BD.

    Args:
        name: One of NAMES: mfr28, iresnet18, iresnet34, iresnet50, iresnet100 or iresnet200; or timm/NAME,
            torchvision/NAME or package.module:factory, as `fastmfr.external.build_external` takes them.
        embedding: Outputs D. None is 512 * width for mfr28, 512 for an iResNet or a network of timm or torchvision,
            and what a factory makes of no number.
        width: Channels of mfr28, as a multiple of 64 to 512; the paper has 0.5.
        image_size: Width and height of the images in pixels; mfr28 takes any, an iResNet multiples of 16.
        dropout: Probability of a zero before the last layer of an iResNet or of a network of timm, and in every
            dropout of a network of torchvision.

    Returns:
        The network, with D as its attribute `embedding`.

    Raises:
        ImportError: If timm or torchvision is wanted and missing.
        ValueError: If there is no backbone of this name, or if the backbone does not take the image size.
    """
    if is_external(name):
        return build_external(name, embedding, image_size, dropout)
    if name == "mfr28":
        return MfrNet(embedding, width)
    if name in IRESNET_BLOCKS:
        return IResNet(IRESNET_BLOCKS[name], embedding or 512, image_size, dropout)
    raise ValueError(
        f"want a backbone out of {', '.join(NAMES)}, timm/NAME, torchvision/NAME or package.module:factory, got "
        f"{name!r}"
    )


def check_backbone(config: Config, device: torch.device) -> None:
    """Build a backbone of others once, so that what is wrong with it is told before any work; no random state changes.

    Raises:
        ImportError, ValueError: as `build` has them; or the backbone cannot be trained on this device.
    """
    if is_external(config.model.name):
        with torch.random.fork_rng([]):
            network = build_backbone(config)
        if device.type == "cpu":
            check_on_cpu(network, config.model.name)


def build_backbone(config: Config) -> nn.Module:
    """Build the backbone that a run's settings name, with fresh weights."""
    model = config.model
    return build(model.name, model.embedding, width=model.width, image_size=config.data.size, dropout=model.dropout)
