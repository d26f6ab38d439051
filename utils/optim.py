"""Optimisers, the learning-rate schedule with its warm-up, and the moving average of the weights."""

import copy
import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from utils.hyp import Recipe

Optimizer = torch.optim.Optimizer
M = TypeVar("M", bound=nn.Module)


def make_optimizer(model: nn.Module, name: str, hyp: Recipe, batch_size: int) -> Optimizer:
    """Make SGD, Adam or AdamW with three groups: biases, weights that decay, other weights.

    Only the weights of convolutions and linear layers decay, by `weight_decay` for a nominal batch.
    """
    groups: dict[str, list[nn.Parameter]] = {"bias": [], "weight": [], "norm": []}
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            normalises = isinstance(module, nn.modules.batchnorm._NormBase)
            kind = "bias" if key == "bias" else "norm" if normalises else "weight"
            if parameter.requires_grad:
                groups[kind].append(parameter)
    decay = hyp.weight_decay * batch_size * accumulation(batch_size, hyp.nominal_batch) / hyp.nominal_batch
    settings = [
        {"params": groups["bias"], "weight_decay": 0.0, "name": "bias"},
        {"params": groups["weight"], "weight_decay": decay, "name": "weight"},
        {"params": groups["norm"], "weight_decay": 0.0, "name": "norm"},
    ]
    if name == "SGD":
        return torch.optim.SGD(settings, lr=hyp.lr0, momentum=hyp.momentum, nesterov=hyp.nesterov, fused=True)
    make: type[torch.optim.Adam] = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[name]
    return make(settings, lr=hyp.lr0, betas=(hyp.momentum, 0.999), fused=True)


def accumulation(batch_size: int, nominal: int = 64) -> int:
    """Batches whose gradients make one step."""
    return max(round(nominal / batch_size), 1)


@dataclass(frozen=True)
class Schedule:
    """Learning rate, momentum and accumulation as functions of the batch count: nothing to save, nothing to resume."""

    hyp: Recipe
    epochs: int
    batches: int  # in an epoch
    batch_size: int
    cosine: bool = False
    planned: int | None = None  # epochs that the warm-up was reckoned for, where a resumed run has others

    @property
    def warmup(self) -> int:
        """Batches of warm-up: the recipe's epochs, 100 batches at least, but never over a third of a short run."""
        if self.hyp.warmup_epochs == 0:
            return 0
        wanted = max(round(self.hyp.warmup_epochs * self.batches), 100)
        return min(wanted, (self.planned or self.epochs) * self.batches // 3)

    def share(self, epoch: int) -> float:
        """Share of lr0 in an epoch: from 1 to lrf, or by the recipe's steps."""
        past = epoch / self.epochs
        if self.hyp.lr_steps:
            return self.hyp.lr_step_factor ** sum(past >= step for step in self.hyp.lr_steps)
        left = (1 + math.cos(math.pi * past)) / 2 if self.cosine else 1 - past
        return left * (1 - self.hyp.lrf) + self.hyp.lrf

    def accumulate(self, count: int) -> int:
        """Batches in the step that batch `count` belongs to; grows from 1 in the warm-up."""
        full = accumulation(self.batch_size, self.hyp.nominal_batch)
        return full if count >= self.warmup else max(1, round(1 + (full - 1) * count / self.warmup))

    def apply(self, optimizer: Optimizer, count: int) -> None:
        """Set the optimizer for batch `count` of the run, counted from 0."""
        lr = self.hyp.lr0 * self.share(count // self.batches)
        progress = min(count / self.warmup, 1.0) if self.warmup else 1.0
        momentum = self.hyp.warmup_momentum + (self.hyp.momentum - self.hyp.warmup_momentum) * progress
        for group in optimizer.param_groups:
            start = self.hyp.warmup_bias_lr if group["name"] == "bias" else 0.0
            group["lr"] = start + (lr - start) * progress
            if "momentum" in group:
                group["momentum"] = momentum
            else:
                group["betas"] = (momentum, group["betas"][1])


class EMA(Generic[M]):
    """Exponential moving average of a model's weights and buffers; evaluated and saved in the model's place."""

    def __init__(self, model: M, *, decay: float = 0.9999, tau: float = 2000.0, updates: int = 0) -> None:
        """Follow `model`, from a copy of it; the decay grows as decay * (1 - exp(-updates / tau)): the start fades."""
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.tau, self.updates = decay, tau, updates
        # a state_dict shares its memory with the model, which keeps its tensors as long as it trains
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the model, once for each optimizer step."""
        self.updates += 1
        weight = 1 - self.decay * (1 - math.exp(-self.updates / self.tau))
        mine, theirs = zip(*self._floats, strict=True)
        torch._foreach_lerp_(mine, theirs, weight)
        for count, followed in self._counts:
            count.copy_(followed)


class EarlyStopping:
    """Says when `patience` epochs have passed without a better fitness; 0 never stops."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best = -math.inf
        self.best_epoch = 0

    def improves(self, fitness: float, epoch: int) -> bool:
        """Note an epoch's fitness; whether it is the best so far (ties go to the later epoch)."""
        if not math.isnan(fitness) and fitness >= self.best:
            self.best, self.best_epoch = fitness, epoch
            return True
        return False

    def exhausted(self, epoch: int) -> bool:
        """Whether to stop after `epoch`."""
        return bool(self.patience) and epoch - self.best_epoch >= self.patience
