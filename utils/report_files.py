"""The files of a report: figures and tables, curves, mosaics of mistakes, and one page that shows them all."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.annotations import Annotations
from utils import page
from utils.coco import Detections, confusion_matrix
from utils.crops import draw_false_alarms, draw_misses
from utils.mistakes import Mistakes, find_mistakes
from utils.official import Results, detections_to_json, official
from utils.page import Picture
from utils.plots import plot_confusion_matrix, plot_curves, plot_precision_recall
from utils.report import versions, write_csv, write_metrics_json, write_text_atomically
from utils.validation import Report

WORST_IMAGES = 50  # rows of the page's table


def write_report(
    report: Report,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    title: str,
    confirmed: Mapping[str, float] | None = None,
    plots: bool = True,
    pictures: Sequence[Picture] = (),
) -> None:
    """Write metrics.json, per_class.csv, per_image.csv, with `plots` curves and mosaics, and report.html with all that.

    Args:
        report: the validation.
        folder: where the files go.
        settings: the options it ran with.
        title: of the page.
        confirmed: pycocotools' figures.
        plots: draw pictures.
        pictures: further ones for the page.
    """
    metrics, mistakes = report.metrics, find_mistakes(report.metrics)
    content: dict[str, Any] = {
        **metrics.to_json(),
        "speed_ms": report.evaluation.milliseconds,
        "device": report.device,
        "images": len(report.annotations),
        "labels": report.labels,
        "settings": dict(settings),
        "versions": versions(),
    }
    write_metrics_json(folder / "metrics.json", content | ({"pycocotools": confirmed} if confirmed else {}))
    images = mistakes.images(report.annotations)
    write_csv(folder / "per_class.csv", [row.row() for row in metrics.per_class])
    write_csv(folder / "per_image.csv", images)
    sections = [
        page.cards({key: metrics.figures[key] for key in ("AP", "AP50", "AP75", *metrics.bands, "P", "R", "F1")}),
        *([page.gallery("The worst mistakes", _draw_mistakes(report, mistakes, folder))] if plots else []),
        *_tables(report, images, confirmed),
        *([page.gallery("Pictures", [*_plot(report, folder), *_first_batch(report), *pictures])] if plots else []),
        page.settings("Settings", settings),
        page.settings("Versions", content["versions"]),
    ]
    subtitle = f"{len(images)} images, {report.labels} labels; {report.speeds()} on {report.device}"
    write_text_atomically(folder / "report.html", page.page(title, subtitle, sections))


def _tables(report: Report, images: list[dict[str, Any]], confirmed: Mapping[str, float] | None) -> list[str]:
    """The page's tables: all figures, those of each class, the worst images."""
    metrics = report.metrics
    rows = [{"by": "this project", **metrics.figures}]
    if confirmed:
        rows.append({"by": "pycocotools", **{key: confirmed.get(key, math.nan) for key in metrics.figures}})
    threshold = f"at IoU 0.5 and confidence {metrics.confidence:.3f}, where the mean F1 peaks"
    classes = [row.row() for row in metrics.per_class]
    worst = [{**row, "image": Path(row["image"]).name} for row in images[:WORST_IMAGES]]
    return [
        page.table("Figures", f"COCO's, of all classes; P, R and F1 {threshold}.", rows),
        page.table("Classes", "The same of each class; a dash where it has no labels.", classes, shares=("AP50", "AP")),
        page.table("Worst images", f"Counted {threshold}; per_image.csv has all {len(images)}.", worst, shares=("F1",)),
    ]


def _draw_mistakes(report: Report, mistakes: Mistakes, folder: Path) -> list[Picture]:
    """Draw the mosaics; those without anything to show are left out."""
    key = "Labels are green, detections orange, at the confidence where F1 peaks."
    mosaics = [
        (
            draw_misses,
            "misses.jpg",
            "Labels without a detection: first those not found at any confidence, the largest first.",
        ),
        (draw_false_alarms, "false_alarms.jpg", "Detections without a label, the most confident first."),
    ]
    return [
        Picture(folder / name, f"{caption} {key}", wide=True)
        for draw, name, caption in mosaics
        if draw(mistakes, report.annotations, folder / name)
    ]


def _plot(report: Report, folder: Path) -> list[Picture]:
    """Draw the curves and the confusion matrix."""
    curves, names = report.metrics.curves, report.annotations.names
    precision = curves.precision_at_recall
    path = folder / "PR_curve.png"
    plot_precision_recall(curves.recall_axis, precision, precision.mean(1), names, path)
    pictures = [Picture(path, "Precision against recall at IoU 0.5.")]
    for key, label, values in (
        ("F1", "F1", curves.f1),
        ("P", "Precision", curves.precision),
        ("R", "Recall", curves.recall),
    ):
        path = folder / f"{key}_curve.png"
        plot_curves(curves.confidence, values, names, path, ylabel=label)
        pictures.append(Picture(path, f"{label} against the confidence threshold at IoU 0.5."))
    path = folder / "confusion_matrix.png"
    matrix = confusion_matrix(report.annotations, report.evaluation.detections)
    plot_confusion_matrix(matrix.astype(float), names, path)
    return [*pictures, Picture(path, "What each class was taken for, at confidence 0.25 and IoU 0.45.", wide=True)]


def _first_batch(report: Report) -> list[Picture]:
    captions = ("Labels of the first images.", "Detections in the first images, of confidence 0.25 and more.")
    return [Picture(path, caption, wide=True) for path, caption in zip(report.pictures, captions, strict=False)]


def write_coco_json(report: Report, path: Path, truth: Path | None) -> dict[str, float]:
    """Write the detections in COCO's form and return what pycocotools makes of them, against `truth` if given."""
    annotations = report.annotations
    rows = write_detections(annotations, report.evaluation.detections, path)
    return official(
        truth or annotations,
        rows,
        image_ids=annotations.image_ids.tolist(),
        category_ids=annotations.category_ids.tolist(),
    )


def write_detections(annotations: Annotations, detections: Detections, path: Path) -> Results:
    """Write detections in COCO's result form, and return them."""
    rows = detections_to_json(annotations, detections)
    write_text_atomically(path, json.dumps(rows))
    return rows
