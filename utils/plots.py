"""Plots: curves, the confusion matrix, the labels of a data set, the course of a training or of a search.

The only module that uses matplotlib, through figures of its own: no window, no backend and no global setting is
touched. A file appears under its name only when it is complete.
"""

import csv
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from utils.areas import COCO_BANDS
from utils.report import write_bytes_atomically
from utils.upstream import colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.floating[Any]]

SIZE_BANDS = dict(zip(("small", "medium", "large"), COCO_BANDS.values(), strict=True))
# Okabe and Ito's colours, told apart with every kind of colour blindness; yellow left out, it is faint on white
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Arial Unicode MS", "Noto Sans", "DejaVu Sans")
# Panels of results.png, one for each figure with the columns it shows; columns not named here get their own
RESULT_PANELS = (
    ("Box loss", ("train/box_loss", "val/box_loss")),
    ("Objectness loss", ("train/obj_loss", "val/obj_loss")),
    ("Class loss", ("train/cls_loss", "val/cls_loss")),
    ("Learning rate", ("x/lr0", "x/lr1", "x/lr2")),
    ("Precision and recall", ("metrics/precision", "metrics/recall")),
    ("AP on the validation set", ("metrics/mAP_0.5", "metrics/mAP_0.5:0.95")),
    ("Accuracy on the validation set", ("metrics/accuracy_top1", "metrics/accuracy_top5")),
    ("AP by object size", ("metrics/AP_S", "metrics/AP_M", "metrics/AP_L")),
)
RESULT_LEGENDS = {
    "metrics/mAP_0.5": "AP50",
    "metrics/mAP_0.5:0.95": "AP",
    "metrics/accuracy_top1": "top-1",
    "metrics/accuracy_top5": "top-5",
    "x/lr0": "biases",
    "x/lr1": "weights",
    "x/lr2": "BatchNorm",
}


def font_file() -> str:
    """The file of the installed font that covers most scripts; matplotlib brings the last of the list along."""
    from matplotlib.font_manager import fontManager  # noqa: PLC0415 (most runs never draw with it)

    files = {font.name: str(font.fname) for font in reversed(fontManager.ttflist)}
    return next(files[name] for name in FONTS if name in files)


@contextmanager
def _figure(path: Path, size: tuple[float, float], title: str = "") -> "Iterator[Figure]":
    """Give a figure of `size` inches (100 pixels each) and write it to `path` when the block is through."""
    from matplotlib import rc_context  # noqa: PLC0415 (half a second that only runs with pictures pay)
    from matplotlib.figure import Figure  # noqa: PLC0415

    quiet = {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11, "font.size": 10}
    with rc_context(
        {
            **quiet,
            "font.sans-serif": list(reversed(FONTS)),
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.25,
            "text.parse_math": False,  # a class may be called $a^$
        }
    ):
        figure = Figure(figsize=size, dpi=100, layout="constrained")
        if title:
            figure.suptitle(title)
        yield figure
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # no font has it: a frame stands in its place
            figure.savefig(content, format=path.suffix[1:])
    write_bytes_atomically(path, content.getbuffer())


def plot_curves(confidences: Floats, values: Floats, names: Sequence[str], path: Path, *, ylabel: str) -> None:
    """Write a value (precision, recall, F1) against the confidence threshold, a line a class and their mean.

    Args:
        confidences: (n,) thresholds, rising.
        values: (nc, n); a class without ground truth is NaN.
        names: a name for each class.
        path: the picture's file.
        ylabel: what the value is.
    """
    present = ~np.isnan(values).any(1)
    with _figure(path, (9, 6), f"{ylabel} against the confidence threshold") as figure:
        axes = figure.subplots()
        if present.any():
            mean = values[present].mean(0)
            best = int(mean.argmax())
            summary = f"all classes, best {mean[best]:.2f} at {confidences[best]:.3f}"
            labels = [names[i] for i in np.flatnonzero(present).tolist()]
            _draw_lines(axes, confidences, values[present], labels, summary)
        _finish_unit_square(axes, "Confidence threshold", ylabel)


def plot_precision_recall(recalls: Floats, precision: Floats, ap50: Floats, names: Sequence[str], path: Path) -> None:
    """Write precision against recall at IoU 0.50, a line a class and their mean.

    Args:
        recalls: (101,) COCO's recall points.
        precision: (nc, 101); a class without ground truth is NaN.
        ap50: (nc,) the area under each line.
        names: a name for each class.
        path: the picture's file.
    """
    present = ~np.isnan(precision).any(1)
    with _figure(path, (9, 6), "Precision against recall (IoU 0.50)") as figure:
        axes = figure.subplots()
        if present.any():
            labels = [f"{names[i]} {ap50[i]:.3f}" for i in np.flatnonzero(present).tolist()]
            summary = f"all classes, AP50 {ap50[present].mean():.3f}"
            _draw_lines(axes, recalls, precision[present], labels, summary)
        _finish_unit_square(axes, "Recall", "Precision")


def _draw_lines(axes: "Axes", x: Floats, values: Floats, labels: Sequence[str], summary: str) -> None:
    """Draw a thin line a row and their mean; many rows are grey and unnamed, or the picture could not be read."""
    few = 1 < len(values) <= len(PALETTE) - 1
    if few:
        for row, label, color in zip(values, labels, PALETTE[1:], strict=False):
            axes.plot(x, row, linewidth=1.2, color=color, label=label)
    elif len(values) > 1:
        axes.plot(x, values.T, linewidth=0.6, color="0.75", label=["single classes"] + [None] * (len(values) - 1))
    name = summary if len(values) > 1 else f"{labels[0]}: {summary}"
    axes.plot(x, values.mean(0), linewidth=2.8, color=PALETTE[0], label=name)


def _finish_unit_square(axes: "Axes", xlabel: str, ylabel: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=xlabel, ylabel=ylabel)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    else:
        axes.text(0.5, 0.5, "no ground truth", ha="center", va="center")


def plot_confusion_matrix(matrix: Floats, names: Sequence[str], path: Path, *, background: bool = True) -> None:
    """Write the confusion matrix, each column (true class) divided by its sum.

    Args:
        matrix: (nc + 1, nc + 1) counts, row predicted, column true, the last of each the background.
        names: a name for each class.
        path: the picture's file.
        background: whether there is one; classifiers have none, and a matrix (nc, nc).
    """
    count = len(matrix)
    ticks = [*names, "background"] if background else list(names)
    assert count == len(ticks), "a row for each class, and one for the background if there is one"
    totals = matrix.sum(0, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape, np.float64), where=totals > 0)
    side = min(max(5.0, 2.5 + 0.42 * count), 16.0)
    with _figure(path, (side + 1, side), "Confusion matrix, in shares of each true class") as figure:
        axes = figure.subplots()
        mesh = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(visible=False)
        size = min(10.0, 560 / count)
        axes.set_xticks(range(count), ticks, rotation=90, fontsize=size)
        axes.set_yticks(range(count), ticks, fontsize=size)
        notes = (" (background: false alarms)", " (background: missed)") if background else ("", "")
        axes.set(xlabel=f"True class{notes[0]}", ylabel=f"Predicted class{notes[1]}")
        if count <= 32:
            _write_shares(axes, shares, size)
        figure.colorbar(mesh, ax=axes, shrink=0.6)


def _write_shares(axes: "Axes", shares: Floats, size: float) -> None:
    for row, column in np.argwhere(shares >= 0.005):
        share = shares[row, column]
        ink = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=ink, fontsize=size * 0.8)


def plot_labels(
    classes: npt.NDArray[np.int64],
    xywhn: Floats,
    names: Sequence[str],
    path: Path,
    *,
    wh: Floats,
) -> None:
    """Write what the labels of a data set look like: classes, shapes, places and sizes.

    Args:
        classes: (M,).
        xywhn: (M, 4) centre and size, divided by the image's size.
        names: a name for each class.
        path: the picture's file.
        wh: (M, 2) width and height in pixels of the original image.
    """
    wide = min(max(11.0, 6 + 0.14 * len(names)), 17.0)
    with _figure(path, (wide, 9), f"{len(classes)} labels of {len(names)} classes") as figure:
        panels = figure.subplots(2, 2)
        _class_panel(panels[0, 0], np.bincount(classes, minlength=len(names)), names)
        _shape_panel(panels[0, 1], xywhn, classes)
        _centre_panel(panels[1, 0], xywhn)
        _size_panel(panels[1, 1], wh)


def plot_class_counts(counts: npt.NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """Write how many images each class (nc) has."""
    wide = min(max(6.0, 3 + 0.14 * len(names)), 17.0)
    with _figure(path, (wide, 4.5), f"{counts.sum()} images of {len(names)} classes") as figure:
        axes = figure.subplots()
        _class_panel(axes, counts, names)
        axes.set(title="", ylabel="Images")


def _class_panel(axes: "Axes", counts: npt.NDArray[np.intp], names: Sequence[str]) -> None:
    axes.bar(range(len(names)), counts, color=PALETTE[0])
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=min(10.0, 520 / max(len(names), 1)))
    axes.grid(visible=False, axis="x")
    axes.set(title="Labels of each class", ylabel="Labels", xlim=(-0.6, len(names) - 0.4))


def _shape_panel(axes: "Axes", xywhn: Floats, classes: npt.NDArray[np.int64], most: int = 1000) -> None:
    """Outlines of a sample of the boxes about one centre, in their class's colour."""
    from matplotlib.collections import PolyCollection  # noqa: PLC0415

    chosen = np.random.default_rng(0).permutation(len(xywhn))[:most]
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    outlines = xywhn[chosen, None, 2:4] * corners
    inks = [np.array(colors(int(i))) / 255 for i in classes[chosen]]
    axes.add_collection(PolyCollection(list(outlines), facecolors="none", edgecolors=inks, linewidths=0.6, alpha=0.6))
    axes.set(title="Shapes of the boxes about one centre", xlim=(-0.5, 0.5), ylim=(0.5, -0.5), aspect="equal")
    axes.set(xlabel="Width (share of the image)", ylabel="Height (share of the image)")
    axes.grid(visible=False)


def _centre_panel(axes: "Axes", xywhn: Floats) -> None:
    counts, _, _ = np.histogram2d(xywhn[:, 1], xywhn[:, 0], bins=50, range=((0, 1), (0, 1)))
    mesh = axes.imshow(counts, cmap="cividis", extent=(0, 1, 1, 0))
    axes.figure.colorbar(mesh, ax=axes, label="Labels")
    axes.grid(visible=False)
    axes.set(title="Where the centres lie", xlabel="x (share of the image)", ylabel="y (share of the image)")


def _size_panel(axes: "Axes", wh: Floats) -> None:
    """Histogram of the boxes' sides (square root of the area) with the share in each of COCO's bands."""
    sides = np.sqrt(wh[:, 0] * wh[:, 1]).clip(1)
    top = max(float(sides.max(initial=0)) * 1.1, 192.0)
    axes.hist(sides, bins=np.geomspace(1, top, 60).tolist(), color=PALETTE[0])
    axes.set_xscale("log")
    marks = [mark for mark in (1, 2, 4, 8, 16, 32, 64, 96, 192, 384, 768, 1536) if mark <= top]
    axes.set_xticks(marks, [str(mark) for mark in marks])
    axes.set_xticks([], minor=True)
    axes.set(title="Sizes of the boxes with COCO's bands", xlabel="Square root of the area (pixels)", ylabel="Labels")
    axes.set(xlim=(1, top), ylim=(0, axes.get_ylim()[1] * 1.18))
    for (name, (low, high)), shade in zip(SIZE_BANDS.items(), ("0.92", "0.84", "0.76"), strict=True):
        low, end = max(low, 1.0), min(high, top)  # noqa: PLW2901
        axes.axvspan(low, end, color=shade, zorder=0)
        share = ((sides >= low) & (sides < high)).mean() if len(sides) else 0.0
        place = math.sqrt(low * end)
        axes.text(place, 0.97, f"{name}\n{share:.0%}", transform=axes.get_xaxis_transform(), ha="center", va="top")


def plot_results(csv_path: Path, png_path: Path) -> None:
    """Write the course of a training, read from its results.csv: losses, learning rates and metrics by epoch."""
    with csv_path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {key.strip(): np.array([float(row[key]) for row in rows]) for key in (rows[0] if rows else ())}
    epochs = columns.pop("epoch", np.arange(len(rows)))
    columns = {key: values for key, values in columns.items() if not np.isnan(values).all()}  # nothing was measured
    panels = [(title, [key for key in keys if key in columns]) for title, keys in RESULT_PANELS]
    known = {key for _, keys in panels for key in keys}
    panels = [panel for panel in panels if panel[1]] + [(key, [key]) for key in columns if key not in known]
    width = min(max(len(panels), 1), 4)
    height = math.ceil(len(panels) / width) or 1
    with _figure(png_path, (4 * width, 3.2 * height), "Training by epoch") as figure:
        grid = figure.subplots(height, width, squeeze=False).flatten()
        for axes, (title, keys) in zip(grid, panels, strict=False):
            _course_panel(axes, title, epochs, {key: columns[key] for key in keys})
        for axes in grid[len(panels) :]:
            axes.set_axis_off()


def _course_panel(axes: "Axes", title: str, epochs: Floats, lines: dict[str, Floats]) -> None:
    marker = "o" if len(epochs) < 30 else None
    for (key, values), color, style in zip(lines.items(), PALETTE, ("-", "--", ":"), strict=False):
        label = RESULT_LEGENDS.get(key) or (key.split("/")[0] if key.endswith("_loss") else key.split("/")[-1])
        axes.plot(epochs, values, style, color=color, linewidth=1.8, marker=marker, markersize=3, label=label)
    axes.set(title=title, xlabel="Epoch")
    if title.startswith(("Precision", "AP", "Accuracy")):
        axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=9, loc="best")


def plot_study(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write AP against the image size and against the time of an image.

    Args:
        rows: one for each size: `imgsz`, `AP`, the AP of the smallest objects before that of other bands (`AP_S`), and
            milliseconds of the stages under names that end in `_ms`.
        path: the picture's file.
    """
    sizes = [int(row["imgsz"]) for row in rows]
    times = [sum(value for key, value in row.items() if key.endswith("_ms")) for row in rows]
    accuracy = [row["AP"] for row in rows]
    smallest = next(key for key in rows[0] if key.startswith("AP_"))
    with _figure(path, (12, 5), "Accuracy and speed by image size") as figure:
        by_size, by_time = figure.subplots(1, 2, sharey=True)
        by_size.plot(sizes, accuracy, "-o", color=PALETTE[0], label="AP")
        by_size.plot(
            sizes, [row[smallest] for row in rows], "--o", color=PALETTE[1], label=f"{smallest} (small objects)"
        )
        by_size.set(xlabel="Image size (pixels)", ylabel="AP", ylim=(0, None))
        by_size.legend(frameon=False)
        by_time.plot(times, accuracy, "-o", color=PALETTE[0])
        by_time.set(xlabel="Time of an image, all stages (ms)", xlim=(0, None))
        for size, time, value in zip(sizes, times, accuracy, strict=True):
            by_time.annotate(str(size), (time, value), textcoords="offset points", xytext=(0, 6), ha="center")


def plot_search(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str], importances: Mapping[str, float], path: Path
) -> None:
    """Write the course of a search for a recipe, which keys mattered, and the fitness against each of them.

    Args:
        rows: one for each trial: `trial`, `state` (complete, pruned, fail), `fitness`, and a value for each key.
        keys: the recipe's keys that are searched.
        importances: share of each key in what sets the best trials apart; empty while that is not known.
        path: the picture's file.
    """
    keys = sorted(keys, key=lambda key: -importances.get(key, 0.0))
    width = 6
    first = 2 if importances else 1
    height = math.ceil((first + len(keys)) / width)
    columns = {key: np.array([row[key] for row in rows]) for key in ("trial", "state", "fitness", *keys)}
    with _figure(path, (3 * width, 2.8 * height), f"{len(rows)} trials of a recipe") as figure:
        grid = figure.subplots(height, width, squeeze=False).flatten()
        _history_panel(grid[0], columns)
        if importances:
            _importance_panel(grid[1], importances)
        for axes, key in zip(grid[first:], keys, strict=False):
            _slice_panel(axes, columns, key)
        for axes in grid[first + len(keys) :]:
            axes.set_axis_off()


def _history_panel(axes: "Axes", columns: Mapping[str, npt.NDArray[Any]]) -> None:
    complete = columns["state"] == "complete"
    trials, fitness = columns["trial"], columns["fitness"]
    axes.plot(trials[complete], np.maximum.accumulate(fitness[complete]), color=PALETTE[1], label="best so far")
    axes.plot(trials[complete], fitness[complete], "o", markersize=3, color=PALETTE[0], label="complete")
    pruned = columns["state"] == "pruned"
    if pruned.any():
        axes.plot(trials[pruned], fitness[pruned], "x", markersize=4, color="0.6", label="pruned")
    axes.set(title="Fitness of each trial", xlabel="Trial")
    axes.legend(frameon=False, fontsize=8, loc="best")


def _importance_panel(axes: "Axes", importances: Mapping[str, float], most: int = 10) -> None:
    names = sorted(importances, key=importances.__getitem__)[-most:]
    axes.barh(names, [importances[name] for name in names], color=PALETTE[0])
    axes.tick_params(axis="y", labelsize=8)
    axes.set(title="Importance")


def _slice_panel(axes: "Axes", columns: Mapping[str, npt.NDArray[Any]], key: str) -> None:
    """Fitness against one key; a later trial is darker, the best is marked."""
    complete = columns["state"] == "complete"
    values, fitness = columns[key][complete], columns["fitness"][complete]
    axes.scatter(values, fitness, c=columns["trial"][complete], s=10, cmap="Blues", vmin=-len(values), zorder=2)
    if len(values):
        best = int(fitness.argmax())
        axes.plot(values[best], fitness[best], "*", markersize=10, color=PALETTE[1], zorder=3)
        axes.set(title=f"{key} {values[best]:.4g}")
    axes.locator_params(axis="x", nbins=4)
