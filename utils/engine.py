"""The loops of the method: an epoch of training, the evaluation of a split, and prediction, the same in val and detect.

Everything is handed in: this module builds no model, reads no data and writes no file.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.loader import Batch, Loader
from models.fold import fold, fuse
from models.yolo import Model
from utils.boxes import Letterbox, nms, unletterbox
from utils.coco import Detections
from utils.loss import DetectionLoss
from utils.optim import EMA, Optimizer, Schedule
from utils.options import InputError
from utils.upstream import Progress, progress

CLIP_NORM = 10.0
REPORT_EVERY = 10  # batches
LOSSES = ("box", "obj", "cls")
TEST_TIME_VIEWS = ((1.0, False), (0.83, True), (0.67, False))  # scale, mirrored


@dataclass(frozen=True)
class NmsSettings:
    """Which decoded boxes become detections; the fields are arguments of `utils.boxes.nms`."""

    conf: float | list[float] = 0.25
    iou: float = 0.45
    max_det: int = 300
    classes: list[int] | None = None
    agnostic: bool = False
    multi_label: bool = False
    single_class: bool = False  # forget classes: each box counts with its best score, as class 0

    @property
    def least_conf(self) -> float:
        """Confidence below which a box is a detection of no class."""
        return min(self.conf) if isinstance(self.conf, list) else self.conf


@dataclass(frozen=True)
class Prediction:
    """What a model finds in a batch: detections (n, 6) of each image, x1, y1, x2, y2, confidence, class; on the CPU."""

    padded: list[Tensor]  # in pixels of the letterboxed images
    original: list[Tensor]  # in pixels of the files
    raw: list[Tensor]  # raw maps, on the model's device; empty with test-time augmentation


class Stopwatch:
    """Adds up wall time by name, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the block's time under `name`."""
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Detector(Protocol):
    """What finds objects in batches and keeps the time: a Predictor, or one that looks at tiles."""

    device: torch.device
    settings: NmsSettings
    watch: Stopwatch

    def __call__(self, batch: Batch) -> Prediction:
        """Detect in a batch as the loader gives it."""

    def warm_up(self, batch: Batch) -> None:
        """Detect once untimed."""


class Predictor:
    """A model made ready to detect: fused, in channels-last memory, on its device and in its precision."""

    def __init__(
        self,
        model: Model,
        device: torch.device,
        *,
        settings: NmsSettings,
        half: bool = False,
        augment: bool = False,
        folded: bool = True,
        compiled: bool = False,
    ) -> None:
        """Copy the model; `half` is float16 on CUDA, else bfloat16; `augment` adds scaled and mirrored views."""
        ready = fuse(model).to(device).to(memory_format=torch.channels_last)
        self.model = fold(ready, frozen=True) if folded else ready
        self.forward = compile_model(self.model) if compiled else self.model
        self.device = device
        self.settings = settings
        self.augment = augment
        self.half = half
        self.watch = Stopwatch(device)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Prediction:
        """Detect in a batch as the loader gives it."""
        with self.watch.measure("preprocess"):
            images = batch.to(self.device, torch.channels_last).images
        with self.watch.measure("inference"), self._precision():
            raw, decoded = self._decode(images)
            if self.settings.single_class:
                decoded = [torch.cat((rows[:, :5], rows[:, 5:].amax(1, keepdim=True)), 1) for rows in decoded]
        with self.watch.measure("nms"):
            settings = self.settings
            padded = nms(
                decoded,
                conf=settings.conf,
                iou=settings.iou,
                classes=settings.classes,
                agnostic=settings.agnostic,
                multi_label=settings.multi_label,
                max_det=settings.max_det,
            )
            found = torch.cat(padded).cpu()  # once for the whole batch
            padded = list(torch.split(found, [len(rows) for rows in padded]))
            original = [_to_original(rows, geometry) for rows, geometry in zip(padded, batch.geometries, strict=True)]
        return Prediction(padded, original, raw)

    def warm_up(self, batch: Batch) -> None:
        """Detect once untimed: the first run allocates memory and lays out kernels."""
        self(batch)
        self.watch.seconds.clear()

    def _precision(self) -> AbstractContextManager[object]:
        if not self.half:
            return nullcontext()
        return torch.autocast(self.device.type, torch.float16 if self.device.type == "cuda" else torch.bfloat16)

    def _decode(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Raw maps, and the boxes (n, 5 + nc) of each image that NMS has to choose from."""
        if not self.augment:
            raw = self.forward(images)
            return raw, self.model.decode_above(raw, self.settings.least_conf)
        views = [self._view(images, scale, mirrored) for scale, mirrored in TEST_TIME_VIEWS]
        return [], [torch.cat(parts) for parts in zip(*views, strict=True)]

    def _view(self, images: Tensor, scale: float, mirrored: bool) -> list[Tensor]:
        """Decode a scaled and perhaps mirrored view, its boxes carried back to `images`."""
        view = images.flip(3) if mirrored else images
        height, width = (round(side * scale) for side in images.shape[2:])
        view = F.interpolate(view, (height, width), mode="bilinear", align_corners=False)
        stride = self.model.max_stride
        view = F.pad(view, (0, -width % stride, 0, -height % stride), value=114 / 255)
        decoded = self.model.decode_above(self.forward(view), self.settings.least_conf)
        for rows in decoded:  # one for each image
            rows[:, :4] /= rows.new_tensor((width / images.shape[3], height / images.shape[2]) * 2)
            if mirrored:
                rows[:, 0] = images.shape[3] - rows[:, 0]
        return decoded


def _to_original(rows: Tensor, geometry: Letterbox | None) -> Tensor:
    assert geometry is not None, "a batch to predict on is letterboxed, not augmented"
    return torch.cat((unletterbox(rows[:, :4], geometry), rows[:, 4:]), 1)


@dataclass
class Evaluation:
    """What `evaluate` gathers: all detections, mean losses if asked, and milliseconds of an image by stage."""

    detections: Detections = field(default_factory=Detections)
    losses: dict[str, float] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)


def evaluate(
    predictor: Detector,
    loader: Loader,
    *,
    criterion: DetectionLoss | None = None,
    on_batch: Callable[[int, Batch, Prediction], None] | None = None,
    description: str = "validation",
) -> Evaluation:
    """Run a predictor over a split.

    Args:
        predictor: the model and its thresholds.
        loader: letterboxed batches.
        criterion: gives the mean losses, too.
        on_batch: told of each batch and what was found in it, for pictures and files.
        description: the text before the progress bar.
    """
    result = Evaluation()
    images, sums = 0, torch.zeros(len(LOSSES), dtype=torch.float64)
    for number, batch in enumerate(progress(loader, description, total=len(loader), unit="batch")):
        prediction = predictor(batch)
        for index, rows in zip(batch.indices, prediction.original, strict=True):
            result.detections.add(index, rows)
        if criterion is not None and prediction.raw:
            with torch.inference_mode():
                losses = criterion([level.float() for level in prediction.raw], batch.boxes)
            sums += torch.stack([losses[name] for name in LOSSES]).cpu().double() * len(batch)
        if on_batch is not None:
            on_batch(number, batch, prediction)
        images += len(batch)
    result.milliseconds = {name: 1e3 * value / max(images, 1) for name, value in predictor.watch.seconds.items()}
    if criterion is not None:
        result.losses = dict(zip(LOSSES, (sums / max(images, 1)).tolist(), strict=True))
    return result


@dataclass(frozen=True)
class Place:
    """How far a training has come: `batch` batches of `epoch` are done and the optimizer's step after them, too.

    `losses` are their sums over the `images` of the epoch so far, by LOSSES.
    """

    epoch: int = 0
    batch: int = 0
    losses: tuple[float, ...] = (0.0,) * len(LOSSES)
    images: int = 0


class NonFiniteLossError(InputError):
    """The loss of batch `number` of an epoch is no finite number."""

    def __init__(self, number: int, losses: Sequence[float]) -> None:
        found = ", ".join(f"{name} {value:g}" for name, value in zip(LOSSES, losses, strict=True))
        super().__init__(f"the loss is not finite ({found})")
        self.number = number


@dataclass
class Trainer:
    """What an epoch of training works on."""

    model: Model
    ema: EMA[Model]
    criterion: DetectionLoss
    optimizer: Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    device: torch.device
    amp: torch.dtype | None = None  # precision of the forward pass; None is float32
    multi_scale: bool = False
    compiled: bool = False
    seed: int = 0
    _unread: list[tuple[int, Tensor]] = field(default_factory=list)  # numbers and losses of batches not looked at yet

    def __post_init__(self) -> None:
        self.forward = compile_model(self.model) if self.compiled else self.model

    def train_one_epoch(
        self,
        loader: Loader,
        place: Place,
        *,
        on_batch: Callable[[int, Batch], None] | None = None,
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
        self.model.train()
        total, seen = torch.tensor(place.losses, device=self.device), place.images
        accumulated, last = 0, self.schedule.batches - 1
        bar: Progress[Batch] = progress(total=self.schedule.batches, unit="batch")
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
        return dict(zip(LOSSES, (total / max(seen, 1)).tolist(), strict=True))

    def _place(self, epoch: int, batch: int, total: Tensor, images: int) -> Place:
        self._check_losses()
        return Place(epoch, batch, tuple(total.tolist()), images)

    def _check_losses(self) -> None:
        """Look at the losses since the last look, which waits for the device."""
        unread, self._unread = self._unread, []
        values = torch.stack([losses for _, losses in unread]).tolist() if unread else []
        for (number, _), losses in zip(unread, values, strict=True):
            if not all(map(math.isfinite, losses)):
                raise NonFiniteLossError(number, losses)

    def _backward(self, batch: Batch, count: int) -> Tensor:
        """Add a batch's gradients; returns its losses (3)."""
        batch = batch.to(self.device, torch.channels_last)
        images = self._rescaled(batch.images, count) if self.multi_scale else batch.images
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            raw = self.forward(images)
        losses = self.criterion(raw, batch.boxes)
        loss = sum(losses.values(), start=images.new_zeros(())) * len(batch)  # the sum over images, as YOLOv5 steps
        self.scaler.scale(loss).backward()
        return torch.stack([losses[name].detach() for name in LOSSES])

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

    def _report(self, bar: Progress[Batch], epoch: int, mean: Tensor, batch: Batch) -> None:
        self._check_losses()
        values = mean.tolist()
        text = " ".join(f"{name} {value:.4f}" for name, value in zip(LOSSES, values, strict=True))
        bar.describe(f"epoch {epoch + 1}/{self.schedule.epochs} {text} {batch.images.shape[-1]} px")


def compile_model(model: Model) -> Callable[[Tensor], list[Tensor]]:
    """Let torch.compile make kernels for a model, anew for each shape of its input; its parameters stay shared."""
    return torch.compile(model, dynamic=False)


def find_amp(device: torch.device) -> torch.dtype | None:
    """The reduced precision that the hardware has instructions for: float16 or bfloat16 on CUDA, bfloat16 on CPUs."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return None


def image_weights(classes: np.ndarray, starts: np.ndarray, average_precision: Sequence[float]) -> np.ndarray:
    """Weight of each image for --image-weights: more for classes that are rare and badly found.

    Args:
        classes: (M) of all boxes.
        starts: (N + 1) image i owns the boxes starts[i] to starts[i + 1].
        average_precision: AP of each class so far.
    """
    frequency = np.bincount(classes, minlength=len(average_precision)).astype(float)
    need = (1 - np.nan_to_num(np.asarray(average_precision))) ** 2 / np.maximum(frequency, 1)
    sums = np.concatenate(([0.0], np.cumsum(need[classes])))
    weights = sums[starts[1:]] - sums[starts[:-1]]
    return weights + max(weights.max(initial=0.0), 1.0) * 1e-6  # an empty image is drawn now and then
