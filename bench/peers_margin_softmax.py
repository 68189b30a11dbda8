"""How others compute CosFace and ArcFace: mean loss from embeddings (B, D), weights (C, D) and labels (B,).

Each is written here from its formula, in the order of operations that its users run. Scale 64; CosFace m = 0.35,
ArcFace m = 0.5, as everywhere in the field.
"""

import math
from importlib.util import find_spec

import torch
from torch.nn import functional as F

SCALE, COSFACE, ARCFACE = 64.0, 0.35, 0.5


def _cosines(embedding_BD, weight_CD):
    """In float32, also where autocast takes the products in bfloat16; float64 stays what it is."""
    cos_BC = F.linear(F.normalize(embedding_BD), F.normalize(weight_CD))
    return cos_BC.to(torch.promote_types(cos_BC.dtype, torch.float32))


def insightface_arcface(embedding_BD, weight_CD, label_B):
    """As InsightFace's trainer runs it: clamp, acos and cos on all logits, hidden from autograd."""
    cos_BC = _cosines(embedding_BD, weight_CD).clamp(-1, 1)
    with torch.no_grad():
        lowered_BC = cos_BC.acos()
        lowered_BC[torch.arange(len(label_B), device=label_B.device), label_B] += ARCFACE
        lowered_BC = lowered_BC.cos_()
    return F.cross_entropy(SCALE * (cos_BC + (lowered_BC - cos_BC).detach()), label_B)


def tuned_cosface(embedding_BD, weight_CD, label_B):
    """The best of plain PyTorch: the margin on the true cosine only, one fused cross entropy."""
    logit_BC = SCALE * _cosines(embedding_BD, weight_CD)
    margin_B1 = torch.full_like(logit_BC[:, :1], -SCALE * COSFACE)
    return F.cross_entropy(logit_BC.scatter_add(1, label_B.unsqueeze(1), margin_B1), label_B)


def tuned_arcface(embedding_BD, weight_CD, label_B):
    cos_BC, label_B1 = _cosines(embedding_BD, weight_CD), label_B.unsqueeze(1)
    true_B1 = cos_BC.gather(1, label_B1)
    lowered_B1 = true_B1 * math.cos(ARCFACE) - (1 - true_B1 * true_B1).clamp_min(1e-6).sqrt() * math.sin(ARCFACE)
    return F.cross_entropy(SCALE * cos_BC.scatter(1, label_B1, lowered_B1), label_B)


def linear_cross_entropy_without_margin(embedding_BD, weight_CD, label_B):
    """torch's own fused and chunked operation; it knows no margin, so this is plain softmax over cosines."""
    return F.linear_cross_entropy(
        SCALE * F.normalize(embedding_BD), F.normalize(weight_CD), label_B, options=torch.nn.LinearCrossEntropyOptions()
    )


def metric_learning(name, weight_CD):
    """pytorch-metric-learning's loss of that name, its weights those given (it keeps them as (D, C))."""
    from pytorch_metric_learning import losses

    C, D = weight_CD.shape
    margin = {"CosFaceLoss": COSFACE, "ArcFaceLoss": math.degrees(ARCFACE)}[name]
    loss = getattr(losses, name)(C, D, margin=margin, scale=SCALE)
    loss.W = torch.nn.Parameter(weight_CD.detach().T)
    return loss.to(weight_CD.device)


def peers(weight_CD, compiled=True):
    """{name: (embedding_BD, label_B) -> loss and the tensor its weight gradient is of}, those that are installed."""
    functions = {"InsightFace's order (ArcFace)": insightface_arcface, "tuned torch": tuned_cosface}
    if compiled:
        functions["tuned torch, compiled"] = torch.compile(tuned_cosface, dynamic=False)
    takes_minutes = not weight_CD.is_cuda and len(weight_CD) > 100_000  # 15 times our time at 100,000 on a CPU
    if hasattr(F, "linear_cross_entropy") and not takes_minutes:
        functions["linear_cross_entropy, no margin"] = linear_cross_entropy_without_margin
    found = {
        name: lambda embedding_BD, label_B, loss=loss: (loss(embedding_BD, weight_CD, label_B), weight_CD)
        for name, loss in functions.items()
    }
    if find_spec("pytorch_metric_learning"):
        theirs = metric_learning("CosFaceLoss", weight_CD)
        found["pytorch-metric-learning"] = lambda embedding_BD, label_B: (theirs(embedding_BD, label_B), theirs.W)
    return found
