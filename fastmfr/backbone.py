"""Backbones: the 28-layer network of Meta Face Recognition, and InsightFace's iResNets under InsightFace's names.

Both are stacks of one residual block (BatchNorm, convolution, BatchNorm, PReLU, convolution, BatchNorm; arXiv
1801.07698, section 2.2.1). Every operation has a double backward.
Shape suffixes: B = batch, D = embedding, H W = image.
"""

from torch import nn

IRESNET_BLOCKS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
    "iresnet200": (6, 26, 60, 6),
}
NAMES = ("mfr28", *IRESNET_BLOCKS)


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut; the last sum is left linear. The first may change width and stride."""

    def __init__(self, width_in, width, stride=1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x)))))) + shortcut


def _stage(width_in, width, blocks, stride):
    return nn.Sequential(Block(width_in, width, stride), *(Block(width, width) for _ in range(blocks - 1)))


def _initialise(network):
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)  # every convolution is followed by BatchNorm: scale is free


class MfrNet(nn.Module):
    """image_B3HW -> embedding_BD: a two-convolution stem, blocks (3, 3, 4, 3), global average pooling.

    The paper prints width x 0.5, 4.64M parameters, 256 outputs and 128.7M multiply-adds, not the layout. This one is
    matched by size: 28 convolutions of 3 x 3, 4.67M parameters. Its multiply-adds at 120 px are 269M, so the authors'
    strides must differ. Any image of 16 px or more will do. An `embedding` other than 512 * width adds a linear layer.
    """

    def __init__(self, embedding=None, width=0.5, blocks=(3, 3, 4, 3)):
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

    def forward(self, image_B3HW):
        return self.fc(self.bn(self.stages(self.stem(image_B3HW))).mean((2, 3)))


class IResNet(nn.Module):
    """image_B3HW -> embedding_BD; parameters are named as InsightFace's checkpoints name them.

    `image_size` is fixed by the linear layer: 112 gives its usual 7 x 7 grid, any multiple of 16 will do.
    """

    def __init__(self, blocks, embedding=512, image_size=112, dropout=0.0):
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

    def forward(self, image_B3HW):
        x = self.prelu(self.bn1(self.conv1(image_B3HW)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.dropout(self.bn2(x)).flatten(1)))


def build(name, embedding=None, *, width=0.5, image_size=112, dropout=0.0):
    """A backbone by name (one of NAMES), with fresh weights: image_B3HW in about [-1, 1] -> embedding_BD.

    `embedding`: outputs D; None takes the network's own (mfr28: 512 * width, iResNet: 512). `width` scales mfr28's
    channels (0.5 is the paper's), `image_size` and `dropout` are the iResNets'. Raises ValueError for another name.
    """
    if name == "mfr28":
        return MfrNet(embedding, width)
    if name in IRESNET_BLOCKS:
        return IResNet(IRESNET_BLOCKS[name], embedding or 512, image_size, dropout)
    raise ValueError(f"want a backbone out of {', '.join(NAMES)}, got {name!r}")


def build_backbone(config):
    """The backbone that a run's settings name, with fresh weights."""
    model = config.model
    return build(model.name, model.embedding, width=model.width, image_size=config.data.size, dropout=model.dropout)
