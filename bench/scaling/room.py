"""The bytes that a run takes: on each GPU, in the memory of each machine, on the disk."""

from fastmfr.kernels.cos_lse.by_chunks import chunk_size

from fastmfr.meta.rop_engine import KEPT
from fastmfr.training.checkpoint import Checkpoints

from .messages import flat
from .plan import FLOAT, MACHINE, Plan

ENTRY = 16  # bytes of an image in an opened index: place, length and key
PERSON = 8 + 8 + 8  # bytes of an identity in a domain: its place in the file, its number there, its place once chosen
DRAWN = 8 + 4  # bytes of an identity in a sampler: its place, and its number where some are never drawn
SAMPLERS = 2  # one of each stage


def on_gpu(plan: Plan) -> dict[str, float]:
    """Count the memory of a GPU in pretraining, {what: bytes}, at its peak: after the backward pass."""
    D, rows, drawn, all_images = plan.embedding, plan.rows, plan.drawn, plan.gpus * plan.batch
    copied = 0 if plan.sample_rate == 1 else drawn * (D * FLOAT + 8) + rows * (2 * FLOAT + 1)
    chunk = chunk_size(all_images, drawn)
    return {
        "classifier": rows * (2 * D + 1) * FLOAT,
        "its gradient": drawn * (D + 1) * FLOAT + copied,
        "gathered": all_images * (D * (2 * plan.unit + FLOAT) + 12 * FLOAT) + chunk * 2 * (all_images + D),
        "backbone": 3 * FLOAT * plan.network.size + plan.network.buffers,
        "averages": 2 * (FLOAT * plan.network.size + plan.network.buffers),
        "images": plan.batch * plan.activation,
    }


def on_gpu_in_meta(plan: Plan) -> dict[str, float]:
    """Count the memory of a GPU in a meta step of the second order, {what: bytes}; the classifier is gone by then."""
    return {
        "backbone": 2 * FLOAT * flat(plan) + plan.network.buffers,
        "gradients": 4 * FLOAT * flat(plan),
        "averages": 2 * (FLOAT * plan.network.size + plan.network.buffers),
        "images": KEPT / 2 * 2 * plan.pairs * plan.activation,  # `activation` is of two passes
    }


def on_host(plan: Plan) -> dict[str, float]:
    """Count the memory of a machine, {what: bytes}, without what Python and CUDA take; each rank has its own index."""
    ranks = min(MACHINE, plan.gpus)
    return {
        "index": ranks * (plan.images * ENTRY + plan.identities * PERSON),
        "samplers": ranks * SAMPLERS * plan.identities * DRAWN,
        "copy of a state": ranks * plan.rows * 2 * plan.embedding * FLOAT + backbone_state(plan),
    }


def decoded(plan: Plan) -> float:
    """Return the bytes of all images decoded, of which every rank that keeps them has all."""
    return plan.images * plan.size**2 * 3


def backbone_state(plan: Plan) -> int:
    """Return the bytes in a state of what all ranks have in common: weights, momentum and both averages."""
    return 4 * FLOAT * plan.network.size + 3 * plan.network.buffers


def state(plan: Plan) -> int:
    """Return the bytes of a state of pretraining on disk, without the heads of its files."""
    return plan.identities * 2 * plan.embedding * FLOAT + backbone_state(plan)


def on_disk(plan: Plan) -> dict[str, float]:
    """Count the disk, {what: bytes}: the states that are kept and the one that is written, and the images."""
    return {"states": (Checkpoints.KEEP + 1) * state(plan), "images": plan.images * plan.jpeg}
