"""Prediction, the same in val and detect, and the evaluation of a split; `utils/training.py` has the other loop.

Everything is handed in: this module builds no model, reads no data and writes no file.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.loader import Batch, ImageBatch, Loader
from models.fold import fold, fuse
from models.network import Network
from models.yolo import Model
from utils.boxes import GREY, Letterbox, nms, unletterbox
from utils.coco import Detections
from utils.training import Criterion, Outputs, compile_model
from utils.upstream import progress

M = TypeVar("M", bound=Network)
B = TypeVar("B", bound=ImageBatch)
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


class ReadyModel(Generic[M]):
    """A model made ready to predict: fused, in channels-last memory, on its device and in its precision."""

    def __init__(
        self, model: M, device: torch.device, *, half: bool = False, folded: bool = True, compiled: bool = False
    ) -> None:
        """Copy the model; `half` is float16 on CUDA, else bfloat16."""
        ready = fuse(model).to(device).to(memory_format=torch.channels_last)
        self.model = fold(ready, frozen=True) if folded else ready
        self.forward = compile_model(self.model) if compiled else self.model
        self.device = device
        self.half = half
        self.watch = Stopwatch(device)

    def precision(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        if not self.half:
            return nullcontext()
        return torch.autocast(self.device.type, torch.float16 if self.device.type == "cuda" else torch.bfloat16)


class Predictor(ReadyModel[Model]):
    """A detector made ready."""

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
        """Copy the model as `ReadyModel` does; `augment` adds scaled and mirrored views."""
        super().__init__(model, device, half=half, folded=folded, compiled=compiled)
        self.settings = settings
        self.augment = augment

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Prediction:
        """Detect in a batch as the loader gives it."""
        with self.watch.measure("preprocess"):
            images = batch.to(self.device, torch.channels_last).images
        with self.watch.measure("inference"), self.precision():
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
        view = F.pad(view, (0, -width % stride, 0, -height % stride), value=GREY / 255)
        decoded = self.model.decode_above(self.forward(view), self.settings.least_conf)
        for rows in decoded:  # one for each image
            rows[:, :4] /= rows.new_tensor((width / images.shape[3], height / images.shape[2]) * 2)
            if mirrored:
                rows[:, 0] = images.shape[3] - rows[:, 0]
        return decoded


def _to_original(rows: Tensor, geometry: Letterbox | None) -> Tensor:
    assert geometry is not None, "a batch to predict on is letterboxed, not augmented"
    return torch.cat((unletterbox(rows[:, :4], geometry), rows[:, 4:]), 1)


class BatchPrediction(Protocol):
    """What a model says of a batch."""

    @property
    def raw(self) -> Outputs:
        """What the loss takes; of no length when there is no such thing."""


P = TypeVar("P", bound=BatchPrediction)
B_contra = TypeVar("B_contra", bound=ImageBatch, contravariant=True)
P_co = TypeVar("P_co", bound=BatchPrediction, covariant=True)


class BatchPredictor(Protocol[B_contra, P_co]):
    """A model made ready to predict, with its watch."""

    watch: Stopwatch

    def __call__(self, batch: B_contra) -> P_co:
        """Predict of a batch as the loader gives it."""


@dataclass
class Course:
    """What a pass over a split costs and loses: mean losses if asked, and milliseconds of an image by stage."""

    losses: dict[str, float] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)

    def speeds(self) -> str:
        """The time of each stage."""
        return f"speed of an image: {', '.join(f'{value:.1f} ms {name}' for name, value in self.milliseconds.items())}"


def run_over(
    predictor: BatchPredictor[B, P],
    loader: Loader[B],
    on_batch: Callable[[int, B, P], None],
    *,
    criterion: Criterion | None = None,
    description: str = "validation",
) -> Course:
    """Run a predictor over a split.

    Args:
        predictor: the model and its thresholds.
        loader: batches as they are, not augmented.
        on_batch: told of each batch and what was predicted of it.
        criterion: gives the mean losses, too.
        description: the text before the progress bar.
    """
    result, names = Course(), criterion.names if criterion is not None else ()
    images, sums = 0, torch.zeros(len(names), dtype=torch.float64)
    for number, batch in enumerate(progress(loader, description, total=len(loader), unit="batch")):
        prediction = predictor(batch)
        if criterion is not None and len(prediction.raw):
            with torch.inference_mode():
                losses = criterion(_as_float(prediction.raw), batch.targets)
            sums += torch.stack([losses[name] for name in names]).cpu().double() * len(batch)
        on_batch(number, batch, prediction)
        images += len(batch)
    result.milliseconds = {name: 1e3 * value / max(images, 1) for name, value in predictor.watch.seconds.items()}
    result.losses = dict(zip(names, (sums / max(images, 1)).tolist(), strict=True))
    return result


def _as_float(raw: Outputs) -> Outputs:
    return raw.float() if isinstance(raw, Tensor) else [level.float() for level in raw]


@dataclass
class Evaluation(Course):
    """A detector's course over a split, with all that it has found there."""

    detections: Detections = field(default_factory=Detections)


def evaluate(
    predictor: Detector,
    loader: Loader[Batch],
    *,
    criterion: Criterion | None = None,
    on_batch: Callable[[int, Batch, Prediction], None] | None = None,
    description: str = "validation",
) -> Evaluation:
    """Run a detector over a split, as `run_over` does, and gather its detections.

    Args:
        predictor: the model and its thresholds.
        loader: letterboxed batches.
        criterion: gives the mean losses, too.
        on_batch: told of each batch and what was found in it, for pictures and files.
        description: the text before the progress bar.
    """
    detections = Detections()

    def gather(number: int, batch: Batch, prediction: Prediction) -> None:
        for index, rows in zip(batch.indices, prediction.original, strict=True):
            detections.add(index, rows)
        if on_batch is not None:
            on_batch(number, batch, prediction)

    course = run_over(predictor, loader, gather, criterion=criterion, description=description)
    return Evaluation(course.losses, course.milliseconds, detections)


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
