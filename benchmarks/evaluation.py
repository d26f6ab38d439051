"""Time the evaluator against pycocotools on a synthetic split of COCO val2017's size, and compare their 12 figures.

Run from the project's folder: `python -m benchmarks.evaluation`. Both start from data in memory and alternate; ours
includes P, R, F1 and their curves, which pycocotools does not give.
"""

import contextlib
import copy
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.annotations import Annotations
from utils.coco import COCO_FIGURES, Detections, Metrics, evaluate_coco, truth_table
from utils.curves import Floats, match
from utils.official import to_coco_json
from utils.options import InputError, option, run_script

SIDE = 640  # pixels of every image
CLASSES = 80
BOXES_PER_IMAGE, DETECTIONS_PER_IMAGE = 7.2, 100


@dataclass
class Options:
    """Size and repetitions of the benchmark."""

    images: int = option(5000, "images; boxes and detections follow: 7.2 and 100 an image")
    rounds: int = option(3, "runs of each evaluator, in alternation")
    seed: int = option(0, "seed of the synthetic split")


def make_split(images: int, rng: np.random.Generator) -> Annotations:
    """Draw boxes of all COCO's bands, 1 % crowds; a few classes are common and most are rare, as in COCO."""
    count = round(images * BOXES_PER_IMAGE)
    owners = np.sort(rng.integers(0, images, count))
    boxes = _boxes(count, rng)
    return Annotations(
        names=[f"class {index}" for index in range(CLASSES)],
        paths=[Path(f"{index:06}.jpg") for index in range(images)],
        sizes_wh=np.full((images, 2), SIDE, np.int32),
        image_ids=rng.permutation(images * 10)[:images],
        category_ids=np.arange(1, CLASSES + 1),
        starts=np.searchsorted(owners, np.arange(images + 1)),
        classes=_classes(count, rng),
        boxes=boxes,
        areas=boxes[:, 2] * boxes[:, 3] * rng.uniform(0.5, 1, count),
        crowd=rng.random(count) < 0.01,
        polygons=np.empty((0, 2), np.float32),
        polygon_starts=np.zeros(count + 1, np.int64),
        problems=[],
    )


def make_detections(split: Annotations, rng: np.random.Generator) -> Detections:
    """Draw a detector's output: a third near true boxes, mostly of the right class, the rest anywhere and unsure."""
    images = len(split.paths)
    count = images * DETECTIONS_PER_IMAGE
    near = rng.integers(0, len(split.boxes), count // 3)
    sizes = split.boxes[near][:, [2, 3, 2, 3]]
    shaken = split.boxes[near] + rng.normal(0, 0.1, (near.size, 4)) * sizes
    owners = np.repeat(np.arange(images), np.diff(split.starts))[near]
    right = rng.random(near.size) < 0.8
    far = count - near.size
    xywh = np.concatenate((shaken, _boxes(far, rng)))
    xywh[:, 2:] = xywh[:, 2:].clip(min=1)
    rows = np.column_stack(
        (
            xywh[:, :2],
            xywh[:, :2] + xywh[:, 2:],
            np.concatenate((rng.beta(2, 3, near.size), rng.beta(1, 12, far))),
            np.concatenate((np.where(right, split.classes[near], _classes(near.size, rng)), _classes(far, rng))),
        )
    ).astype(np.float32)
    owners = np.concatenate((owners, rng.integers(0, images, far)))
    order = np.lexsort((-rows[:, 4], owners))
    bounds = np.searchsorted(owners[order], np.arange(images + 1))
    detections = Detections()
    for image in range(images):
        detections.add(image, rows[order[bounds[image] : bounds[image + 1]]])
    return detections


def _boxes(count: int, rng: np.random.Generator) -> Floats:
    sizes = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
    return np.concatenate((rng.random((count, 2)) * (SIDE - sizes), sizes), 1)


def _classes(count: int, rng: np.random.Generator) -> Any:
    return (CLASSES * rng.random(count) ** 2).astype(np.int64)


def exact_rows(split: Annotations, detections: Detections) -> Floats:
    """The (D, 7) rows that pycocotools reads: image id, x, y, width, height, score, category id; nothing is rounded."""
    found = detections.table()
    ids = split.image_ids[found.images], split.category_ids[found.classes]
    return np.column_stack((ids[0], found.boxes, found.confidences, ids[1]))


def run_pycocotools(gold_json: dict[str, Any], rows: Floats) -> list[float]:
    """The 12 figures by pycocotools, from data in memory."""
    with contextlib.redirect_stdout(io.StringIO()):
        gold = COCO()
        gold.dataset = gold_json
        gold.createIndex()
        evaluation = COCOeval(gold, gold.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def timed(work: Callable[[], Any], seconds: list[float]) -> Any:
    """Do the work and append how long it took."""
    start = time.perf_counter()
    result = work()
    seconds.append(time.perf_counter() - start)
    return result


def largest_difference(metrics: Metrics, expected: list[float]) -> float:
    """Largest absolute difference of the 12 figures; nan of ours is -1 of theirs."""
    ours = np.nan_to_num([metrics.figures[key] for key in COCO_FIGURES], nan=-1.0)
    return float(np.abs(ours - expected).max())


def main(options: Options) -> None:
    """Run the evaluators in alternation and print the table."""
    if min(options.images, options.rounds) < 1:
        raise InputError("--images and --rounds: expected 1 or more")
    rng = np.random.default_rng(options.seed)
    split = make_split(options.images, rng)
    detections = make_detections(split, rng)
    gold_json, rows = to_coco_json(split), exact_rows(split, detections)
    ours: list[float] = []
    matching: list[float] = []
    theirs: list[float] = []
    difference = 0.0
    for _ in range(options.rounds):
        metrics = timed(lambda: evaluate_coco(split, detections), ours)
        timed(lambda: match(detections.table(), truth_table(split)), matching)
        gold_copy = copy.deepcopy(gold_json)  # pycocotools writes into it
        expected = timed(lambda copied=gold_copy: run_pycocotools(copied, rows), theirs)  # type: ignore[misc]
        difference = max(difference, largest_difference(metrics, expected))
    print(f"{options.images} images, {len(split.boxes)} boxes, {len(detections)} detections, {CLASSES} classes\n")
    print("| evaluator | median s | spread s | ratio |\n|---|---|---|---|")
    for name, seconds in (
        ("pycocotools", theirs),
        ("ours, with P/R/F1 curves", ours),
        ("of it, our matching", matching),
    ):
        median = statistics.median(seconds)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"| {name} | {median:.2f} | {spread} | {statistics.median(theirs) / median:.1f}x |")
    print(f"\nlargest difference of the 12 figures: {difference:.1e}")
    print(", ".join(f"{key} {value:.4f}" for key, value in metrics.figures.items()))
    assert difference < 1e-6, "the evaluators disagree"


if __name__ == "__main__":
    run_script(main, Options, "Time the evaluator against pycocotools.")
