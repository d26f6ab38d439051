"""The log of a classifier's training."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.class_dataset import ClassBatch
from data.class_images import ClassSplit
from utils.class_report import write_class_report
from utils.classification import ClassReport, plot_class_images
from utils.page import Picture
from utils.plots import plot_class_counts
from utils.run_log import RunLog


class ClassLog(RunLog[ClassBatch, ClassReport]):
    """The folder of a classifier's training on the images of a split."""

    def __init__(self, folder: Path, split: ClassSplit, *, plots: bool, first_epoch: int = 0) -> None:
        """Start the log, or go on with it from `first_epoch`."""
        super().__init__(folder, plots=plots, first_epoch=first_epoch)
        self.split = split

    def draw_labels(self, path: Path) -> None:
        """Draw how many images each class has."""
        plot_class_counts(self.split.counts, self.split.names, path)

    def draw_batch(self, batch: ClassBatch, path: Path) -> None:
        """Draw the images with their classes."""
        plot_class_images(batch.images, [self.split.names[label] for label in batch.labels.tolist()], path)

    def row(
        self, losses: Mapping[str, float], report: ClassReport | None, rates: Mapping[str, float]
    ) -> dict[str, float]:
        """An epoch in YOLOv5's columns for classifiers."""
        figures = report.metrics.figures if report else {}
        val_losses = report.course.losses if report else {}
        row = {f"train/{name}_loss": value for name, value in losses.items()}
        row |= {f"val/{name}_loss": val_losses.get(name, math.nan) for name in losses}
        row |= {f"metrics/accuracy_{key}": figures.get(key, math.nan) for key in ("top1", "top5")}
        return {**row, **rates}

    def write_report(
        self, report: ClassReport, settings: Mapping[str, Any], *, title: str, pictures: list[Picture]
    ) -> None:
        """Write figures, tables, the confusion matrix, wrong guesses and the page."""
        write_class_report(report, self.folder, settings, title=title, plots=self.plots, pictures=pictures)
