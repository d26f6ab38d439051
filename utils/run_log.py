"""What a training leaves behind as it goes: its settings, results.csv, pictures, and all of it in TensorBoard."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from data.loader import ImageBatch
from models.network import Network
from utils.page import Picture
from utils.plots import plot_results
from utils.report import ResultsCsv, TensorBoard, write_yaml

PICTURED_BATCHES = 3
B = TypeVar("B", bound=ImageBatch)
R = TypeVar("R")


class RunLog(ABC, Generic[B, R]):
    """The folder of one training; closed with `finish`. What is particular to a task, its own kind of log adds."""

    def __init__(self, folder: Path, *, plots: bool, first_epoch: int = 0) -> None:
        """Start the log, or go on with it from `first_epoch`."""
        self.folder = folder
        self.plots = plots
        self.tensorboard = TensorBoard(folder)
        self.csv = ResultsCsv(folder / "results.csv", first_epoch=first_epoch)

    @abstractmethod
    def draw_batch(self, batch: B, path: Path) -> None:
        """Draw a batch as the model gets it."""

    @abstractmethod
    def draw_labels(self, path: Path) -> None:
        """Draw what the training labels look like."""

    @abstractmethod
    def row(self, losses: Mapping[str, float], report: R | None, rates: Mapping[str, float]) -> dict[str, float]:
        """An epoch's columns in results.csv: its losses, its validation if it had one, and the learning rates."""

    @abstractmethod
    def write_report(self, report: R, settings: Mapping[str, Any], *, title: str, pictures: list[Picture]) -> None:
        """Write the report of the run's model."""

    def settings(self, **parts: Mapping[str, Any]) -> None:
        """Write each part as a YAML of its name."""
        for name, content in parts.items():
            write_yaml(self.folder / f"{name}.yaml", content)

    def labels(self) -> None:
        """Draw what the training labels look like."""
        if self.plots:
            self.draw_labels(self.folder / "labels.jpg")
            self.tensorboard.picture("labels", self.folder / "labels.jpg", 0)

    def graph(self, model: Network, size: int) -> None:
        """Show the model's graph in TensorBoard."""
        if not self.plots:  # a trace's memory is never freed, which adds up where one program trains many times
            return
        device = next(model.parameters()).device
        self.tensorboard.graph(model, torch.zeros(1, int(model.config.get("ch", 3)), size, size, device=device))

    def batch_drawer(self) -> Callable[[int, B], None] | None:
        """Give a function that draws the first batches of an epoch as the model gets them."""
        if not self.plots:
            return None

        def draw(number: int, batch: B) -> None:
            if number < PICTURED_BATCHES:
                path = self.folder / f"train_batch{number}.jpg"
                self.draw_batch(batch, path)
                self.tensorboard.picture(path.stem, path, 0)

        return draw

    def debug_batch(self, batch: B, name: str) -> Path:
        """Draw a batch that something went wrong with, as the model got it; returns the picture's path."""
        path = self.folder / "debug" / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        self.draw_batch(batch, path)
        return path

    def epoch(self, epoch: int, losses: Mapping[str, float], report: R | None, rates: list[float]) -> None:
        """Add an epoch: its losses, its validation if it had one, and the groups' learning rates."""
        row = self.row(losses, report, {f"x/lr{number}": rate for number, rate in enumerate(rates)})
        self.csv.append({"epoch": epoch, **row})
        self.tensorboard.scalars(row, epoch)
        if report is not None and self.plots:
            self.tensorboard.picture("val_batch0_pred", self.folder / "val_batch0_pred.jpg", epoch)

    def finish(self, report: R, settings: Mapping[str, Any], *, title: str) -> None:
        """Write the report of the run's model and the course of the run, and show all plots in TensorBoard."""
        pictures = []
        if self.plots:
            course, labels = self.folder / "results.png", self.folder / "labels.jpg"
            plot_results(self.folder / "results.csv", course)
            pictures = [Picture(course, "The training by epoch."), Picture(labels, "The training labels.")]
        self.write_report(report, settings, title=title, pictures=pictures)
        if self.plots:
            for path in sorted(self.folder.glob("*.png")):
                self.tensorboard.picture(path.stem, path, settings["epochs"])
        self.tensorboard.close()
