"""The loops of the method: an epoch of training, the evaluation of a split, and prediction, the same in val and detect.

Everything is handed in: this module builds no model, reads no data and writes no file.
"""

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

    conf: float = 0.25
    iou: float = 0.45
    max_det: int = 300
    classes: list[int] | None = None
    agnostic: bool = False
    multi_label: bool = False
    single_class: bool = False  # forget classes: each box counts with its best score, as class 0


@dataclass(frozen=True)
class Prediction:
    """What a model finds in a batch: detections (n, 6) of each image, x1, y1, x2, y2, confidence, class."""

    padded: list[Tensor]  # in pixels of the letterboxed images
    original: list[Tensor]  # in pixels of the files
    raw: list[Tensor]  # raw maps; empty with test-time augmentation


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
    ) -> None:
        """Copy the model; `half` is float16 on CUDA, else bfloat16; `augment` adds scaled and mirrored views."""
        ready = fuse(model).to(device).to(memory_format=torch.channels_last)
        self.model = fold(ready, frozen=True) if folded else ready
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
            raw = self.model(images)
            return raw, self.model.decode_above(raw, self.settings.conf)
        views = [self._view(images, scale, mirrored) for scale, mirrored in TEST_TIME_VIEWS]
        return [], [torch.cat(parts) for parts in zip(*views, strict=True)]

    def _view(self, images: Tensor, scale: float, mirrored: bool) -> list[Tensor]:
        """Decode a scaled and perhaps mirrored view, its boxes carried back to `images`."""
        view = images.flip(3) if mirrored else images
        height, width = (round(side * scale) for side in images.shape[2:])
        view = F.interpolate(view, (height, width), mode="bilinear", align_corners=False)
        stride = self.model.max_stride
        view = F.pad(view, (0, -width % stride, 0, -height % stride), value=114 / 255)
        decoded = self.model.decode_above(self.model(view), self.settings.conf)
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
    images, sums = 0, dict.fromkeys(LOSSES, 0.0)
    for number, batch in enumerate(progress(loader, description, total=len(loader), unit="batch")):
        prediction = predictor(batch)
        for index, rows in zip(batch.indices, prediction.original, strict=True):
            result.detections.add(index, rows)
        if criterion is not None and prediction.raw:
            with torch.inference_mode():
                losses = criterion([level.float() for level in prediction.raw], batch.boxes.to(predictor.device))
            for name in LOSSES:
                sums[name] += losses[name].item() * len(batch)
        if on_batch is not None:
            on_batch(number, batch, prediction)
        images += len(batch)
    result.milliseconds = {name: 1e3 * value / max(images, 1) for name, value in predictor.watch.seconds.items()}
    if criterion is not None:
        result.losses = {name: value / max(images, 1) for name, value in sums.items()}
    return result


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
    seed: int = 0

    def train_one_epoch(
        self, loader: Loader, epoch: int, *, on_batch: Callable[[int, Batch], None] | None = None
    ) -> dict[str, float]:
        """Train over the loader once; returns the mean losses by name.

        Raises:
            InputError: a loss is no longer a finite number.
        """
        self.model.train()
        total = torch.zeros(len(LOSSES), device=self.device)
        accumulated, seen = 0, 0
        bar: Progress[Batch] = progress(total=len(loader), unit="batch")
        with bar:
            for number, batch in enumerate(loader):
                if on_batch is not None:
                    on_batch(number, batch)
                count = epoch * len(loader) + number
                self.schedule.apply(self.optimizer, count)
                losses = self._backward(batch, count)
                total += losses * len(batch)
                accumulated, seen = accumulated + 1, seen + len(batch)
                if accumulated >= self.schedule.accumulate(count) or number == len(loader) - 1:
                    self._step()
                    accumulated = 0
                if number % REPORT_EVERY == 0 or number == len(loader) - 1:  # reading a number waits for the device
                    self._report(bar, epoch, total / seen, batch)
                bar.update()
        return dict(zip(LOSSES, (total / max(seen, 1)).tolist(), strict=True))

    def _backward(self, batch: Batch, count: int) -> Tensor:
        """Add a batch's gradients; returns its losses (3)."""
        batch = batch.to(self.device, torch.channels_last)
        images = self._rescaled(batch.images, count) if self.multi_scale else batch.images
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            raw = self.model(images)
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
        self.ema.update(self.model)

    def _report(self, bar: Progress[Batch], epoch: int, mean: Tensor, batch: Batch) -> None:
        values = mean.tolist()
        if not np.isfinite(values).all():
            raise InputError(
                f"epoch {epoch}: the loss is not finite ({dict(zip(LOSSES, values, strict=True))}) with images"
                f" {batch.indices}; a lower lr0 or --no-amp may help"
            )
        text = " ".join(f"{name} {value:.4f}" for name, value in zip(LOSSES, values, strict=True))
        bar.describe(f"epoch {epoch + 1}/{self.schedule.epochs} {text} {batch.images.shape[-1]} px")


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
