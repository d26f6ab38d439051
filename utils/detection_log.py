"""The log of a detector's training."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.annotations import Annotations
from data.figures import draw_labels
from data.loader import Batch
from utils.drawing import plot_batch
from utils.page import Picture
from utils.report import BANDS
from utils.report_files import write_report
from utils.run_log import RunLog
from utils.validation import Report

NAMED_FIGURES = {"precision": "P", "recall": "R", "mAP_0.5": "AP50", "mAP_0.5:0.95": "AP"}  # YOLOv5's columns


class DetectionLog(RunLog[Batch, Report]):
    """The folder of a detector's training on the images of a table."""

    def __init__(self, folder: Path, table: Annotations, *, plots: bool, first_epoch: int = 0) -> None:
        """Start the log, or go on with it from `first_epoch`."""
        super().__init__(folder, plots=plots, first_epoch=first_epoch)
        self.table = table

    def draw_labels(self, path: Path) -> None:
        """Draw the classes, shapes, places and sizes of the boxes."""
        draw_labels(self.table, path)

    def draw_batch(self, batch: Batch, path: Path) -> None:
        """Draw the images with their boxes."""
        titles = [self.table.paths[index].name for index in batch.indices]
        plot_batch(batch.images, batch.boxes, self.table.names, path, titles=titles)

    def row(self, losses: Mapping[str, float], report: Report | None, rates: Mapping[str, float]) -> dict[str, float]:
        """An epoch in YOLOv5's columns, and the AP by size."""
        figures = report.metrics.figures if report else {}
        val_losses = report.evaluation.losses if report else {}
        row = {f"train/{name}_loss": value for name, value in losses.items()}
        row |= {f"metrics/{name}": figures.get(key, math.nan) for name, key in NAMED_FIGURES.items()}
        row |= {f"val/{name}_loss": val_losses.get(name, math.nan) for name in losses}
        row |= rates
        row |= {f"metrics/{key}": figures.get(key, math.nan) for key in BANDS}
        return row

    def write_report(self, report: Report, settings: Mapping[str, Any], *, title: str, pictures: list[Picture]) -> None:
        """Write figures, tables, curves, mosaics of mistakes and the page."""
        write_report(report, self.folder, settings, title=title, plots=self.plots, pictures=pictures)
