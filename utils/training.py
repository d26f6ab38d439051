"""An epoch of training, the same for every task; everything is handed in, and no file is written."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.loader import ImageBatch, Loader
from models.network import Network
from utils.optim import EMA, Optimizer, Schedule
from utils.options import InputError
from utils.upstream import Progress, progress

CLIP_NORM = 10.0
REPORT_EVERY = 10  # batches
Outputs = Tensor | list[Tensor]
M = TypeVar("M", bound=Network)
B = TypeVar("B", bound=ImageBatch)


class Criterion(Protocol):
    """What compares a model's outputs with a batch's targets."""

    @property
    def names(self) -> Sequence[str]:
        """What its losses are called."""

    def __call__(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        """The losses by name, each a scalar, the mean over the batch."""


@dataclass(frozen=True)
class Place:
    """How far a training has come: `batch` batches of `epoch` are done and the optimizer's step after them, too.

    `losses` are their sums over the `images` of the epoch so far, by the criterion's names; none before its first step.
    """

    epoch: int = 0
    batch: int = 0
    losses: tuple[float, ...] = ()
    images: int = 0


class NonFiniteLossError(InputError):
    """The loss of batch `number` of an epoch is no finite number."""

    def __init__(self, number: int, losses: Mapping[str, float]) -> None:
        found = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        super().__init__(f"the loss is not finite ({found})")
        self.number = number


@dataclass
class Trainer(Generic[M, B]):
    """What an epoch of training works on."""

    model: M
    ema: EMA[M]
    criterion: Criterion
    optimizer: Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    device: torch.device
    loss_scale: float = 1.0  # gradients are those of the sum over images, as YOLOv5 steps, times this
    amp: torch.dtype | None = None  # precision of the forward pass; None is float32
    multi_scale: bool = False
    compiled: bool = False
    seed: int = 0
    _unread: list[tuple[int, Tensor]] = field(default_factory=list)  # numbers and losses of batches not looked at yet

    def __post_init__(self) -> None:
        self.forward = compile_model(self.model) if self.compiled else self.model

    def train_one_epoch(
        self,
        loader: Loader[B],
        place: Place,
        *,
        on_batch: Callable[[int, B], None] | None = None,
        on_step: Callable[[Callable[[], Place]], None] | None = None,
    ) -> dict[str, float]:
        """Train over the loader once, from `place` on, where the loader starts; returns the mean losses by name.

        Args:
            loader: the batches that are left of the epoch.
            place: where in the run they begin.
            on_batch: told of each batch before it is used.
            on_step: called after each step of the optimizer with a function that gives the place reached.

        Raises:
            NonFiniteLossError: a loss is no longer a finite number.
        """
        self._set_modes()
        nothing = (0.0,) * len(self.criterion.names)
        total, seen = torch.tensor(place.losses or nothing, device=self.device), place.images
        accumulated, last = 0, self.schedule.batches - 1
        bar: Progress[B] = progress(total=self.schedule.batches, unit="batch")
        with bar:
            bar.update(place.batch)
            for number, batch in enumerate(loader, place.batch):
                if on_batch is not None:
                    on_batch(number, batch)
                count = place.epoch * self.schedule.batches + number
                self.schedule.apply(self.optimizer, count)
                losses = self._backward(batch, count)
                self._unread.append((number, losses))
                total += losses * len(batch)
                accumulated, seen = accumulated + 1, seen + len(batch)
                if number % REPORT_EVERY == 0 or number == last:
                    self._report(bar, place.epoch, total / seen, batch)
                if accumulated >= self.schedule.accumulate(count) or number == last:
                    self._step()
                    accumulated = 0
                    if on_step is not None:
                        on_step(functools.partial(self._place, place.epoch, number + 1, total, seen))
                bar.update()
        return dict(zip(self.criterion.names, (total / max(seen, 1)).tolist(), strict=True))

    def _set_modes(self) -> None:
        """Let layers learn; a frozen normalisation stays as it is, its statistics too."""
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and not module.weight.requires_grad:
                module.eval()

    def _place(self, epoch: int, batch: int, total: Tensor, images: int) -> Place:
        self._check_losses()
        return Place(epoch, batch, tuple(total.tolist()), images)

    def _check_losses(self) -> None:
        """Look at the losses since the last look, which waits for the device."""
        unread, self._unread = self._unread, []
        values = torch.stack([losses for _, losses in unread]).tolist() if unread else []
        for (number, _), losses in zip(unread, values, strict=True):
            if not all(map(math.isfinite, losses)):
                raise NonFiniteLossError(number, dict(zip(self.criterion.names, losses, strict=True)))

    def _backward(self, batch: B, count: int) -> Tensor:
        """Add a batch's gradients; returns its losses in the order of their names."""
        batch = batch.to(self.device, torch.channels_last)
        images = self._rescaled(batch.images, count) if self.multi_scale else batch.images
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            outputs = self.forward(images)
        losses = self.criterion(outputs, batch.targets)
        loss: Tensor = sum(losses.values(), start=images.new_zeros(())) * (len(batch) * self.loss_scale)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return torch.stack([losses[name].detach() for name in self.criterion.names])

    def _rescaled(self, images: Tensor, count: int) -> Tensor:
        """Resize a batch to a random size within half and one and a half times its own."""
        stride = self.model.max_stride
        size = max(images.shape[2:])
        rng = np.random.default_rng((self.seed, count))
        wanted = int(rng.integers(int(size * 0.5), int(size * 1.5) + stride)) // stride * stride
        shape = [max(round(side * wanted / size / stride), 1) * stride for side in images.shape[2:]]
        return F.interpolate(images, shape, mode="bilinear", align_corners=False)

    def _step(self) -> None:
        """Turn the accumulated gradients into one step of the optimizer, and of the average."""
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()

    def _report(self, bar: Progress[B], epoch: int, mean: Tensor, batch: B) -> None:
        self._check_losses()
        values = mean.tolist()
        text = " ".join(f"{name} {value:.4f}" for name, value in zip(self.criterion.names, values, strict=True))
        bar.describe(f"epoch {epoch + 1}/{self.schedule.epochs} {text} {batch.images.shape[-1]} px")


def compile_model(model: nn.Module) -> Callable[[Tensor], Any]:
    """Let torch.compile make kernels for a model, anew for each shape of its input; its parameters stay shared."""
    return torch.compile(model, dynamic=False)


def find_amp(device: torch.device) -> torch.dtype | None:
    """The reduced precision that the hardware has instructions for: float16 or bfloat16 on CUDA, bfloat16 on CPUs."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return None
