"""The trainer a user would write of torch's own parts: image files, a DataLoader with Pillow, torch.optim.SGD.

`Pretraining` is stage one, eager or compiled, with InsightFace's normalised classifier and CosFace. `MetaTraining` is
stage two by autograd twice. Both take steps on the images, network and settings that fastmfr's stages are given.
Shape suffixes: B = images of a batch, C = identities, D = embedding, H W = image.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from fastmfr.batch_sampler import PairBatchSampler, SplitBatchSampler
from fastmfr.config import Meta, Preprocess, Pretrain, narrowed
from fastmfr.domains import Joint
from fastmfr.losses import MfrLosses
from fastmfr.meta import PairBatch, splits_of_batch
from fastmfr.precision import autocast, matmul_precision

WITHOUT_END = 1 << 40  # batches of an epoch: the workers of a DataLoader never stand still between two epochs


class Faces(Dataset):
    """Image files as a user's Dataset has them: decoded by Pillow, resized, half of them mirrored, normalised.

    Args:
        paths: The files.
        target_N: What comes with each image: its label, or its domain.
        look: Size, mean, std and the probability of a mirrored image.
        in_memory: Whether all images are decoded and resized now, and kept as bytes.
    """

    def __init__(self, paths: Sequence[Path], target_N: np.ndarray, look: Preprocess, in_memory: bool = False):
        self._paths, self._target_N, self._look = [str(path) for path in paths], target_N, look
        self._kept = [np.asarray(self._opened(path)) for path in self._paths] if in_memory else None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixel_HW3 = np.asarray(self._opened(self._paths[index])) if self._kept is None else self._kept[index]
        if random.random() < self._look.flip:
            pixel_HW3 = pixel_HW3[:, ::-1]
        image_3HW = torch.from_numpy(np.ascontiguousarray(pixel_HW3.transpose(2, 0, 1))).float()
        return image_3HW.sub_(self._look.mean).div_(self._look.std), int(self._target_N[index])

    def _opened(self, path):
        with Image.open(path) as image:
            image = image.convert("RGB")
        sides = (self._look.size, self._look.size)
        return image if image.size == sides else image.resize(sides, Image.Resampling.BILINEAR)


def files_of(sources: Joint) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """(paths, label_N, domain_N) of the images of class folders, domain by domain."""
    paths, labels, domains = [], [], []
    for number, domain in enumerate(sources.domains):
        paths += [domain.path / domain.key(image) for image in range(domain.images)]
        domains.append(np.full(domain.images, number))
        labels.append(sources.label(domains[-1], domain.identity_of(np.arange(domain.images))))
    return paths, np.concatenate(labels), np.concatenate(domains)


def endless(faces: Faces, batches: PairBatchSampler, workers: int, device: torch.device) -> Iterator:
    """The batches of a DataLoader whose workers, processes of their own, run ahead as they do by default."""
    return iter(
        DataLoader(
            faces,
            batch_sampler=batches,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            # a fork of a process with threads, such as one that has used DALI, may hang
            multiprocessing_context="spawn" if workers else None,
        )
    )


class CosFace(nn.Module):
    """InsightFace's normalised classifier with CosFace: the margin is taken from the true identity's cosine."""

    def __init__(self, embedding: int, identities: int, margin: float, scale: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(identities, embedding) * 0.01)
        self.margin, self.scale = margin, scale

    def forward(self, embedding_BD: Tensor, label_B: Tensor) -> Tensor:
        cos_BC = F.linear(F.normalize(embedding_BD), F.normalize(self.weight)).float()
        row_B = torch.arange(len(label_B), device=label_B.device)
        cos_BC[row_B, label_B] -= self.margin
        return F.cross_entropy(self.scale * cos_BC, label_B)


class _Loss(nn.Module):
    """Backbone and classifier, as one module to compile."""

    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, image_B3HW: Tensor, label_B: Tensor) -> Tensor:
        return self.head(self.backbone(image_B3HW), label_B)


class Pretraining:
    """Stage one. `step()` takes one step on the next batch and returns its mean loss, detached, on the device.

    Args:
        backbone: The network, on the device, with channels last as fastmfr has it.
        sources: Its domains, of class folders.
        look: What is done to images.
        settings: CosFace, batch, learning rate and precision.
        seed: Of the batches.
        workers: Processes that decode.
        in_memory: As of Faces.
        compiled: None runs eagerly; else the backend of torch.compile.
    """

    def __init__(
        self,
        backbone: nn.Module,
        sources: Joint,
        look: Preprocess,
        settings: Pretrain,
        *,
        seed: int,
        workers: int,
        in_memory: bool = False,
        compiled: str | None = None,
    ):
        self._device, self._precision = next(backbone.parameters()).device, settings.precision
        paths, label_N, domain_N = files_of(sources)
        batches = PairBatchSampler(
            label_N, domain_N, batch_identities=settings.people, seed=seed, steps=WITHOUT_END, rank=0, world=1
        )
        self._batches = endless(Faces(paths, label_N, look, in_memory), batches, workers, self._device)
        margin = settings.margin_values[0] if settings.margin_values else 0.35
        head = CosFace(backbone.embedding, sources.identities, margin, settings.scale)
        self.loss = _Loss(backbone, head.to(self._device)).train()
        self._call = torch.compile(self.loss, dynamic=False, backend=compiled) if compiled else self.loss
        momentum, decay = settings.momentum, settings.weight_decay
        self._optimizer = torch.optim.SGD(
            self.loss.parameters(), lr=settings.learning_rate, momentum=momentum, weight_decay=decay, fused=True
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, _warm_up_and_cosine(settings))

    def step(self) -> Tensor:
        image_B3HW, label_B = (part.to(self._device, non_blocking=True) for part in next(self._batches))
        image_B3HW = image_B3HW.contiguous(memory_format=torch.channels_last)
        self._optimizer.zero_grad()
        with autocast(self._precision, self._device):
            loss = self._call(image_B3HW, label_B)
        with matmul_precision(self._precision):
            loss.backward()
        self._optimizer.step()
        self._schedule.step()
        return loss.detach()


def _warm_up_and_cosine(settings):
    """Factor of the learning rate by the number of the step."""
    warmup, steps = settings.warmup, settings.steps

    def factor(step):
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(1, steps - warmup)))

    return factor


class MetaTraining:
    """Stage two by autograd twice. `step()` takes one step and returns the mean meta-test loss, detached.

    Arguments are those of Pretraining; `settings` has the weights of the losses as numbers.
    """

    def __init__(
        self, backbone: nn.Module, sources: Joint, look: Preprocess, settings: Meta, *, seed: int, workers: int
    ):
        self._device, self._settings = next(backbone.parameters()).device, settings
        paths, label_N, domain_N = files_of(sources)
        batches = SplitBatchSampler(
            label_N, domain_N, batch_identities=settings.people, seed=seed, steps=WITHOUT_END, rank=0, world=1
        )
        self._splits = batches.splits
        self._batches = endless(Faces(paths, domain_N, look), batches, workers, self._device)
        self.backbone, self._losses = backbone.train(), narrowed(settings, MfrLosses)
        momentum, decay = settings.momentum, settings.weight_decay
        self._optimizer = torch.optim.SGD(
            backbone.parameters(), lr=settings.beta, momentum=momentum, weight_decay=decay, fused=True
        )

    def step(self) -> Tensor:
        image_N3HW, domain_N = (part.to(self._device, non_blocking=True) for part in next(self._batches))
        self._optimizer.zero_grad()
        losses = []
        for train, test in splits_of_batch(image_N3HW, domain_N, self._splits):
            total, of_test = self._split(train, test)
            with matmul_precision(self._settings.precision):
                (total / self._splits).backward()
            losses.append(of_test.detach())
        self._optimizer.step()
        return torch.stack(losses).mean()

    def _split(self, train, test):
        """gamma L_S(theta) + (1 - gamma) L_T(theta - alpha grad L_S(theta)), in autograd's graph; and L_T."""
        theta, gamma = dict(self.backbone.named_parameters()), self._settings.gamma
        loss_train = self._loss(theta, train, train.domain_B)
        with matmul_precision(self._settings.precision):
            g = torch.autograd.grad(loss_train, list(theta.values()), create_graph=True)
        inner = {
            name: value - self._settings.alpha * slope for (name, value), slope in zip(theta.items(), g, strict=True)
        }
        loss_test = self._loss(inner, test)
        return gamma * loss_train + (1 - gamma) * loss_test, loss_test

    def _loss(self, theta, pairs: PairBatch, domain_B: Tensor | None = None):
        image_B3HW = torch.cat([pairs.gallery_B3HW, pairs.probe_B3HW]).contiguous(memory_format=torch.channels_last)
        with autocast(self._settings.precision, self._device):
            embedding_BD = functional_call(self.backbone, theta, (image_B3HW,))
        return self._losses(*embedding_BD.float().chunk(2), domain_B).total
