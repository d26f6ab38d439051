"""What a training leaves behind as it goes: its settings, results.csv, pictures, and all of it in TensorBoard."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from data.annotations import Annotations
from data.figures import draw_labels
from data.loader import Batch
from models.yolo import Model
from utils.drawing import plot_batch
from utils.page import Picture
from utils.plots import plot_results
from utils.report import ResultsCsv, TensorBoard, write_yaml
from utils.report_files import write_report
from utils.validation import Report

PICTURED_BATCHES = 3
NAMED_FIGURES = {"precision": "P", "recall": "R", "mAP_0.5": "AP50", "mAP_0.5:0.95": "AP"}  # YOLOv5's columns
OWN_FIGURES = ("AP_S", "AP_M", "AP_L")


class RunLog:
    """The folder of one training; closed with `finish`."""

    def __init__(self, folder: Path, *, plots: bool, first_epoch: int = 0) -> None:
        """Start the log, or go on with it from `first_epoch`."""
        self.folder = folder
        self.plots = plots
        self.tensorboard = TensorBoard(folder)
        self.csv = ResultsCsv(folder / "results.csv", first_epoch=first_epoch)

    def settings(self, **parts: Mapping[str, Any]) -> None:
        """Write each part as a YAML of its name."""
        for name, content in parts.items():
            write_yaml(self.folder / f"{name}.yaml", content)

    def labels(self, table: Annotations) -> None:
        """Draw what the training labels look like."""
        if not self.plots:
            return
        draw_labels(table, self.folder / "labels.jpg")
        self.tensorboard.picture("labels", self.folder / "labels.jpg", 0)

    def graph(self, model: Model, size: int) -> None:
        """Show the model's graph in TensorBoard."""
        if not self.plots:  # a trace's memory is never freed, which adds up where one program trains many times
            return
        device = next(model.parameters()).device
        self.tensorboard.graph(model, torch.zeros(1, int(model.config.get("ch", 3)), size, size, device=device))

    def batch_drawer(self, table: Annotations) -> Callable[[int, Batch], None] | None:
        """Give a function that draws the first batches of an epoch as the model gets them."""
        if not self.plots:
            return None

        def draw(number: int, batch: Batch) -> None:
            if number < PICTURED_BATCHES:
                path = self.folder / f"train_batch{number}.jpg"
                titles = [table.paths[index].name for index in batch.indices]
                plot_batch(batch.images, batch.boxes, table.names, path, titles=titles)
                self.tensorboard.picture(path.stem, path, 0)

        return draw

    def debug_batch(self, batch: Batch, table: Annotations, name: str) -> Path:
        """Draw a batch that something went wrong with, as the model got it; returns the picture's path."""
        path = self.folder / "debug" / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        titles = [table.paths[index].name for index in batch.indices]
        plot_batch(batch.images, batch.boxes, table.names, path, titles=titles)
        return path

    def epoch(self, epoch: int, losses: Mapping[str, float], report: Report | None, rates: list[float]) -> None:
        """Add an epoch: its losses, its validation if it had one, and the groups' learning rates."""
        figures = report.metrics.figures if report else {}
        val_losses = report.evaluation.losses if report else {}
        row = {f"train/{name}_loss": value for name, value in losses.items()}
        row |= {f"metrics/{name}": figures.get(key, math.nan) for name, key in NAMED_FIGURES.items()}
        row |= {f"val/{name}_loss": val_losses.get(name, math.nan) for name in losses}
        row |= {f"x/lr{number}": rate for number, rate in enumerate(rates)}
        row |= {f"metrics/{key}": figures.get(key, math.nan) for key in OWN_FIGURES}
        self.csv.append({"epoch": epoch, **row})
        self.tensorboard.scalars(row, epoch)
        if report is not None and self.plots:
            self.tensorboard.picture("val_batch0_pred", self.folder / "val_batch0_pred.jpg", epoch)

    def finish(self, report: Report, settings: Mapping[str, Any], *, title: str) -> None:
        """Write the report of the run's model and the course of the run, and show all plots in TensorBoard."""
        pictures = []
        if self.plots:
            course, labels = self.folder / "results.png", self.folder / "labels.jpg"
            plot_results(self.folder / "results.csv", course)
            pictures = [Picture(course, "The training by epoch."), Picture(labels, "The training labels.")]
        write_report(report, self.folder, settings, title=title, plots=self.plots, pictures=pictures)
        if self.plots:
            for path in sorted(self.folder.glob("*.png")):
                self.tensorboard.picture(path.stem, path, settings["epochs"])
        self.tensorboard.close()
