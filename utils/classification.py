"""A classifier at work on batches and on splits: its loss, its guesses, and the report of a validation."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.class_dataset import ClassBatch
from data.class_images import ClassSplit
from data.class_sets import Splits, read_set
from data.loader import Loader
from models.resnet import CLASSIFY, ResNet
from utils.checkpoint import Weights, read_weights, refuse_other_task
from utils.class_metrics import KEPT, ClassMetrics, Guesses
from utils.drawing import plot_batch
from utils.engine import Course, ReadyModel, run_over
from utils.options import InputError, Ranged, option
from utils.report import class_table
from utils.runs import check_image_size, rebuild, scan_progress, warn_of
from utils.training import Criterion
from utils.validation import describe

ENLARGED = 6.0  # most times that small images are enlarged in a picture
FITNESS = "top1"
FIGURES = ("top1", "top5", "P", "R", "F1")
VAL_SHARE = 0.1
SHRINK = "throw away pixels first: show images at so many times fewer a side"


@dataclass
class ClassDataOptions(Ranged):
    """Flags of the scripts that read a set of classified images; a field is a flag."""

    data: str = option("glyphs", "glyphs, cifar10, cifar100, tiny-imagenet, or a folder with train/, val/, test/")
    val_share: float | None = option(
        None,
        f"share of the training images set aside for validation if the set has none; {VAL_SHARE} when not given",
        least=0.001,
        most=0.9,
    )


@dataclass
class ClassifierOptions(Ranged):
    """Flags of the scripts that use a trained classifier; a field is a flag."""

    weights: str = option("", "checkpoint to use", aliases=("--weight",))
    imgsz: int | None = option(
        None, "side of the images in pixels; as trained when not given", aliases=("--img", "--img-size"), least=1
    )
    shrink: int | None = option(None, f"{SHRINK}; as trained when not given", least=1)
    device: str = option("", "cpu, or a GPU's number; empty chooses")
    project: str = option("runs/classify", "folder of runs")
    name: str = option("exp", "name of the run")
    exist_ok: bool = option(False, "write into an existing run's folder")
    half: bool = option(False, "float16 on CUDA, bfloat16 on CPUs")
    fold: bool = option(True, "run space-to-depth and the convolution after it in one step, exactly")


class ClassLoss:
    """Cross-entropy of logits (B, nc) against classes (B)."""

    names = ("cls",)

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The mean over the batch."""
        classes = targets.to(outputs.device, non_blocking=True)
        return {"cls": F.cross_entropy(outputs.float(), classes, label_smoothing=self.label_smoothing)}


@dataclass(frozen=True)
class ClassPrediction:
    """What a model says of a batch: logits (B, nc) on its device, and the likeliest classes (B, k) on the CPU."""

    raw: Tensor
    guesses: Guesses


class Classifier(ReadyModel[ResNet]):
    """A classifier made ready."""

    @torch.inference_mode()
    def __call__(self, batch: ClassBatch) -> ClassPrediction:
        """Classify a batch as the loader gives it."""
        with self.watch.measure("preprocess"):
            images = batch.to(self.device, torch.channels_last).images
        with self.watch.measure("inference"), self.precision():
            logits = self.forward(images)
            probabilities, classes = logits.float().softmax(1).topk(min(KEPT, logits.shape[1]))
            guesses = Guesses(classes.cpu().numpy(), probabilities.cpu().double().numpy())
        return ClassPrediction(logits, guesses)


@dataclass
class ClassReport:
    """A validation's figures, and what it took."""

    metrics: ClassMetrics
    course: Course
    split: ClassSplit
    device: str
    pictures: list[Path] = field(default_factory=list)  # drawn on the way

    def fitness(self, weights: Mapping[str, float]) -> float:
        """The weighted sum of figures that the best epoch is chosen by; nan where there is nothing to measure."""
        return sum(weight * self.metrics.figures[name] for name, weight in weights.items())

    def table(self, *, per_class: bool = False) -> str:
        """The console's table, and the speeds."""
        rows = [{"name": "all", "images": len(self.split), **self.metrics.figures}]
        if per_class:
            rows += self.metrics.per_class()
        return f"{class_table(rows, ('images',), FIGURES)}\n{self.speeds()}"

    def speeds(self) -> str:
        """The time of each stage."""
        return self.course.speeds()


def validate_classes(
    classifier: Classifier,
    loader: Loader[ClassBatch],
    split: ClassSplit,
    *,
    criterion: Criterion | None = None,
    pictures: Path | None = None,
    description: str = "validation",
) -> ClassReport:
    """Run the loop and measure; with a folder for `pictures`, draw the first batch with labels and guesses."""
    found: list[tuple[list[int], Guesses]] = []
    drawn: list[Path] = []

    def on_batch(number: int, batch: ClassBatch, prediction: ClassPrediction) -> None:
        found.append((batch.indices, prediction.guesses))
        if pictures is not None and number == 0:
            drawn.append(pictures / "val_batch0_pred.jpg")
            titles = guess_titles(split, batch.indices, prediction.guesses)
            plot_class_images(batch.images, titles, drawn[0])

    course = run_over(classifier, loader, on_batch, criterion=criterion, description=description)
    assert [index for places, _ in found for index in places] == list(range(len(split))), "a loader in order"
    classes, probabilities = (
        np.concatenate([getattr(guesses, part) for _, guesses in found]) for part in ("classes", "probabilities")
    )
    metrics = ClassMetrics(split.names, split.labels, Guesses(classes, probabilities))
    return ClassReport(metrics, course, split, describe(classifier.device), drawn)


def guess_titles(split: ClassSplit, indices: list[int], guesses: Guesses) -> list[str]:
    """A text for each image: its guess with the probability, and its class where that is another one."""
    titles = []
    for index, label, share in zip(indices, guesses.classes[:, 0], guesses.probabilities[:, 0], strict=True):
        true = split.labels[index]
        truth = "" if true == label else f"\n{split.names[true]}: {split.name(index)}"
        titles.append(f"{split.names[label]} {share:.2f}{truth}")
    return titles


def plot_class_images(images: Tensor, titles: list[str], path: Path) -> None:
    """Write up to 16 images (B, 3, H, W) as one mosaic, each with its text."""
    plot_batch(images, torch.zeros(0, 6), [], path, titles=titles, most_scale=ENLARGED)


def build_classifier(weights: Weights) -> ResNet:
    """Rebuild the classifier that a checkpoint holds, with its weights.

    Raises:
        InputError: it holds a detector, or its tensors do not fit the network that its own config describes.
    """
    refuse_other_task(weights.config, CLASSIFY, weights.source)
    return rebuild(lambda: ResNet(weights.config, names=weights.names, source=str(weights.source)), weights)


def open_classifier(path: str) -> ResNet:
    """Read a trained classifier.

    Raises:
        InputError: no checkpoint of one.
    """
    return build_classifier(read_weights(Path(path)))


def refuse_other_classes(model: ResNet, names: list[str], source: str) -> None:
    """Refuse data whose classes are not the model's; where the model has none but numbers, as many will do.

    Raises:
        InputError: it says what differs.
    """
    if len(model.names) != len(names):
        raise InputError(f"{source}: has {len(model.names)} classes, but the data {len(names)}; they must agree")
    if model.names == [str(number) for number in range(len(names))]:
        return
    for number, (own, other) in enumerate(zip(model.names, names, strict=True)):
        if own != other:
            raise InputError(f"{source}: class {number} is '{own}', but '{other}' in the data; they must agree")


def view(model: ResNet, imgsz: int | None, shrink: int | None) -> tuple[int, int]:
    """The side in pixels that images get, and how many times fewer they show, by default as the model was trained.

    Raises:
        InputError: less than a pixel would be left.
    """
    size = check_image_size(imgsz or model.config["imgsz"], model.max_stride)
    shrink = shrink or model.config["shrink"]
    refuse_shrink(size, shrink)
    return size, shrink


def refuse_shrink(size: int, shrink: int) -> None:
    """Refuse to leave less than a pixel of images of a `size`."""
    if shrink > size:
        raise InputError(f"--shrink {shrink}: leaves nothing of images of {size} px")


def trained_share(weights: Weights) -> float | None:
    """The share of the training images that was set aside when a model was trained, if its checkpoint tells."""
    share = weights.options.get("val_share")
    return share if isinstance(share, float) and 0 < share < 1 else None


def read_splits(options: ClassDataOptions, usual_share: float | None = None) -> Splits:
    """Read a set with a progress bar, say what it holds and what is wrong with it, and see to its validation images.

    Args:
        options: tell which set, and perhaps the share of training images to set aside.
        usual_share: what to set aside where the options do not tell, such as a model's `trained_share`.

    Raises:
        InputError: as `read_set`, or a share is asked for of a set that has validation images.
    """
    with scan_progress(f"{options.data}: images") as show:
        splits = read_set(options.data, show)
    if "val" not in splits:
        share = options.val_share or usual_share or VAL_SHARE
        splits["train"], splits["val"] = splits["train"].divided(share)
    elif options.val_share is not None:
        raise InputError(f"--val-share: has no effect, as {options.data} has val/")
    for name, split in splits.items():
        logging.getLogger("yolov5-spd").info(f"{name}: {len(split)} images of {len(split.names)} classes")
        warn_of(split.problems, name)
    return splits
