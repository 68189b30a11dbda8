"""What an exported network computes: from images, or from raw pixels, to embeddings.

Shape suffixes: N images, D embedding, H W image.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmfr.config.choices import Mirror
from fastmfr.decode import Preprocess


class Graph(nn.Module):
    """A backbone in eval mode with what is exported around it.

    Args:
        backbone: Maps image_N3HW, normalised, to embedding_ND.
        preprocess: The size and the normalisation that the backbone wants.
        raw_input: Whether the input is pixels from 0 to 255, which are normalised here; else the caller normalises.
        mirror: What is done here with the mirror image, as in `fastmfr.evaluate.embed`.
        normalise: Whether embeddings are brought to unit length here.
    """

    def __init__(
        self,
        backbone: nn.Module,
        preprocess: Preprocess,
        *,
        raw_input: bool = False,
        mirror: Mirror = "none",
        normalise: bool = False,
    ):
        super().__init__()
        self.backbone, self.preprocess = backbone, preprocess
        self.raw_input, self.mirror, self.normalise = raw_input, mirror, normalise
        self.eval()

    def forward(self, data_N3HW: Tensor) -> Tensor:
        """Map RGB images to embeddings (N, D), or (N, 2 D) with the mirror image's beside."""
        if self.raw_input:
            # A subtraction and a multiplication, as in MXNet's exports: InsightFace's loader looks for the two.
            data_N3HW = (data_N3HW - self.preprocess.mean) * (1 / self.preprocess.std)
        embedding_ND = self.backbone(data_N3HW)
        if self.mirror != "none":
            mirrored_ND = self.backbone(data_N3HW.flip(-1))
            is_sum = self.mirror == "sum"
            embedding_ND = embedding_ND + mirrored_ND if is_sum else torch.cat([embedding_ND, mirrored_ND], 1)
        return F.normalize(embedding_ND) if self.normalise else embedding_ND

    def examples(self, images: int) -> Tensor:
        """Return random images of the kind that the graph takes, (N, 3, H, W), the same at every call."""
        size = self.preprocess.size
        pixel_N3HW = torch.randint(256, (images, 3, size, size), generator=torch.Generator().manual_seed(0)).float()
        return pixel_N3HW if self.raw_input else (pixel_N3HW - self.preprocess.mean) / self.preprocess.std
