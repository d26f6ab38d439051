"""The files of a classifier's validation: figures, tables, the confusion matrix, wrong guesses, and the page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data.class_dataset import to_item
from utils import page
from utils.class_metrics import Guesses
from utils.classification import ClassReport, guess_titles, plot_class_images
from utils.page import Picture
from utils.plots import plot_confusion_matrix
from utils.report import versions, write_csv, write_metrics_json, write_text_atomically

SHOWN_MISTAKES = 16
MISTAKE_SIDE = 128  # pixels, at most


def write_class_report(
    report: ClassReport,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    title: str,
    plots: bool = True,
    pictures: Sequence[Picture] = (),
) -> None:
    """Write metrics.json, per_class.csv, per_image.csv, with `plots` pictures, and report.html with all that."""
    metrics, split = report.metrics, report.split
    content: dict[str, Any] = {
        **metrics.figures,
        "per_class": metrics.per_class(),
        "losses": report.course.losses,
        "speed_ms": report.course.milliseconds,
        "device": report.device,
        "images": len(split),
        "settings": dict(settings),
        "versions": versions(),
    }
    write_metrics_json(folder / "metrics.json", content)
    write_csv(folder / "per_class.csv", metrics.per_class())
    write_csv(folder / "per_image.csv", _images(report))
    sections = [
        page.cards(metrics.figures),
        *([page.gallery("The worst mistakes", _draw_mistakes(report, folder))] if plots else []),
        page.table("Classes", "Precision, recall and F1 of each class.", metrics.per_class(), shares=("P", "R", "F1")),
        *([page.gallery("Pictures", [*_draw_matrix(report, folder), *pictures])] if plots else []),
        page.settings("Settings", settings),
        page.settings("Versions", content["versions"]),
    ]
    subtitle = f"{len(split)} images of {len(split.names)} classes; {report.speeds()} on {report.device}"
    write_text_atomically(folder / "report.html", page.page(title, subtitle, sections))


def _images(report: ClassReport) -> list[dict[str, Any]]:
    """A row for each image, in the order of the split."""
    metrics, split = report.metrics, report.split
    guessed, shares = metrics.guesses.classes[:, 0], metrics.guesses.probabilities[:, 0]
    return [
        {
            "image": split.name(index),
            "class": split.names[split.labels[index]],
            "guess": split.names[guess],
            "confidence": float(share),
            "right": int(guess == split.labels[index]),
        }
        for index, (guess, share) in enumerate(zip(guessed.tolist(), shares.tolist(), strict=True))
    ]


def _draw_mistakes(report: ClassReport, folder: Path) -> list[Picture]:
    """Draw the images that are guessed wrong with the greatest confidence; without any there is no picture."""
    path, chosen = folder / "mistakes.jpg", report.metrics.mistakes()[:SHOWN_MISTAKES]
    if not len(chosen):
        path.unlink(missing_ok=True)  # that of an earlier run in this folder
        return []
    originals = [report.split.read(index) for index in chosen.tolist()]
    side = min(max(min(image.shape[:2]) for image in originals), MISTAKE_SIDE)
    images = torch.stack([to_item(image, side).image for image in originals])
    guesses = report.metrics.guesses
    titles = guess_titles(
        report.split, chosen.tolist(), Guesses(guesses.classes[chosen], guesses.probabilities[chosen])
    )
    plot_class_images(images, titles, path)
    return [Picture(path, "Wrong with the greatest confidence; the true class is in the second line.", wide=True)]


def _draw_matrix(report: ClassReport, folder: Path) -> list[Picture]:
    path = folder / "confusion_matrix.png"
    plot_confusion_matrix(report.metrics.matrix.astype(float), report.split.names, path, background=False)
    guessed = [Picture(picture, "Guesses for the first images.", wide=True) for picture in report.pictures]
    return [Picture(path, "What each class was taken for.", wide=True), *guessed]
