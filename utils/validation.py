"""Validation of a split from end to end: the loop, COCO's metrics, and what is written of each batch on the way."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from data.annotations import Annotations
from data.loader import Batch, Loader
from utils.areas import COCO_BANDS, Bands
from utils.boxes import xyxy_to_xywh
from utils.coco import FIGURES, Metrics, evaluate_coco
from utils.drawing import as_batch_boxes, plot_batch
from utils.engine import Detector, Evaluation, Prediction, evaluate
from utils.loss import DetectionLoss
from utils.options import InputError
from utils.report import console_table, unique_stems, write_text_atomically
from utils.run_log import PICTURED_BATCHES

FITNESS = "0.1 AP50 + 0.9 AP"  # YOLOv5's weighing for the best epoch


def parse_fitness(text: str, known: Sequence[str] = FIGURES, example: str = FITNESS) -> dict[str, float]:
    """Turn `0.1 AP50 + 0.9 AP`, or a figure alone, into the weight of each of the `known` figures that it names.

    Raises:
        InputError: it is no such sum, or names a figure twice or one that a validation does not give.
    """
    weights: dict[str, float] = {}
    for term in text.split("+"):
        number, _, name = term.strip().rpartition(" ")
        try:
            weight = float(number or 1)
        except ValueError:
            weight = math.nan
        if name not in known or not math.isfinite(weight):
            raise InputError(f"--fitness {text!r}: expected a sum such as {example!r}, of {', '.join(known)}")
        if name in weights:
            raise InputError(f"--fitness {text!r}: names {name} twice")
        weights[name] = weight
    return weights


@dataclass
class Report:
    """A validation's figures, and what it took."""

    metrics: Metrics
    evaluation: Evaluation
    annotations: Annotations
    device: str
    pictures: list[Path] = field(default_factory=list)  # drawn on the way

    @property
    def labels(self) -> int:
        """Boxes to be found, crowds apart."""
        return int((~self.annotations.crowd).sum())

    def fitness(self, weights: Mapping[str, float]) -> float:
        """The weighted sum of figures that the best epoch is chosen by; nan where there is nothing to measure."""
        return sum(weight * self.metrics.figures[name] for name, weight in weights.items())

    def table(self, *, per_class: bool = False) -> str:
        """The console's table, and the speeds."""
        total = {**self.metrics.figures, "images": len(self.annotations), "labels": self.labels}
        rows = [row.row() for row in self.metrics.per_class]
        figures = self.metrics.figures.items()
        recalls = ", ".join(f"{key} {value:.3f}" for key, value in figures if key.startswith("AR"))
        table = console_table(total, rows if per_class and len(rows) > 1 else None, bands=self.metrics.bands)
        return f"{table}\n{recalls}\n{self.speeds()}"

    def speeds(self) -> str:
        """The time of each stage."""
        return self.evaluation.speeds()


@dataclass
class LabelFiles:
    """Writes what is found in each image as YOLO txt, class x y w h [confidence]; no file where nothing is found."""

    folder: Path
    annotations: Annotations
    confidences: bool = False
    hybrid: bool = False  # the labels themselves too, in place of detections that agree with them
    iou: float = 0.6  # overlap from which a detection agrees with a label

    @cached_property
    def stems(self) -> list[str]:
        """The file name of each image, without suffix."""
        return unique_stems(self.annotations.paths)

    def write(self, batch: Batch, prediction: Prediction) -> None:
        """Write a batch's files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for index, rows in zip(batch.indices, prediction.original, strict=True):
            found = rows.cpu()
            if self.hybrid:
                found = self._with_labels(found, index)
            path = self.folder / f"{self.stems[index]}.txt"
            if not len(found):
                path.unlink(missing_ok=True)  # of an earlier run in the same folder
                continue
            size = torch.tensor(self.annotations.sizes_wh[index].tolist() * 2)
            write_text_atomically(path, yolo_lines(found, size, self.confidences))

    def _with_labels(self, found: Tensor, index: int) -> Tensor:
        """Put the image's labels, with confidence 1, before the detections that do not repeat them."""
        table = self.annotations
        span = table.rows(index)
        own = torch.from_numpy(np.column_stack((table.boxes[span], table.classes[span]))[~table.crowd[span]]).float()
        corners = torch.cat((own[:, :2], own[:, :2] + own[:, 2:4]), 1)
        labels = torch.cat((corners, torch.ones(len(own), 1), own[:, 4:]), 1)
        repeats = (box_iou(found[:, :4], corners) > self.iou) & (found[:, 5:6] == own[:, 4])
        return torch.cat((labels, found[~repeats.any(1)]))


def yolo_lines(rows: Tensor, size: Tensor, confidences: bool, *, corners: bool = False) -> str:
    """Detections (n, 6) in pixels as lines of YOLO's txt; `size` is (4) width, height, width, height.

    A box is x, y, w, h, or x1, y1, x2, y2 if `corners` are wanted, in shares of the size.
    """
    lines = []
    boxes = (rows[:, :4] if corners else xyxy_to_xywh(rows[:, :4])) / size
    for row, box in zip(rows.tolist(), boxes.tolist(), strict=True):
        numbers = [*box, row[4]] if confidences else box
        lines.append(f"{int(row[5])} " + " ".join(f"{number:.6g}" for number in numbers) + "\n")
    return "".join(lines)


def validate(
    predictor: Detector,
    loader: Loader[Batch],
    annotations: Annotations,
    *,
    bands: Bands = COCO_BANDS,
    criterion: DetectionLoss | None = None,
    pictures: Path | None = None,
    label_files: LabelFiles | None = None,
) -> Report:
    """Run the loop and measure; with a folder for `pictures`, draw the first batches' labels and predictions."""
    drawn: list[Path] = []

    def on_batch(number: int, batch: Batch, prediction: Prediction) -> None:
        if label_files is not None:
            label_files.write(batch, prediction)
        if pictures is not None and number < PICTURED_BATCHES:
            titles = [annotations.paths[index].name for index in batch.indices]
            names = annotations.names
            width, height = batch.images.shape[3], batch.images.shape[2]
            found = as_batch_boxes(prediction.padded, (width, height))
            for boxes, what in ((batch.boxes, "labels"), (found, "pred")):
                drawn.append(pictures / f"val_batch{number}_{what}.jpg")
                plot_batch(batch.images, boxes, names, drawn[-1], titles=titles)

    evaluation = evaluate(predictor, loader, criterion=criterion, on_batch=on_batch, description="validation")
    metrics = evaluate_coco(annotations, evaluation.detections, bands=bands, max_det=predictor.settings.max_det)
    return Report(metrics, evaluation, annotations, describe(predictor.device), drawn)


def describe(device: torch.device) -> str:
    """A device's name, with the GPU's."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
