"""The json files of COCO's official tools, and the figures of pycocotools itself."""

import contextlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.coco
import pycocotools.cocoeval

from data.annotations import Annotations
from data.coco_file import CocoObject, read_object
from utils.coco import COCO_FIGURES, Detections, truth_rows, truth_table

Results = list[dict[str, Any]]  # detections in COCO's form


def to_coco_json(annotations: Annotations) -> dict[str, Any]:
    """Write a split's ground truth in COCO's json form, whatever it was read from; annotation ids count from 1."""
    image_ids = annotations.image_ids.tolist()
    sizes = annotations.sizes_wh.tolist()
    images = [
        {"id": image_id, "file_name": path.name, "width": width, "height": height}
        for image_id, path, (width, height) in zip(image_ids, annotations.paths, sizes, strict=True)
    ]
    category_ids = annotations.category_ids.tolist()
    categories = [
        {"id": category_id, "name": name} for category_id, name in zip(category_ids, annotations.names, strict=True)
    ]
    truths = truth_table(annotations)
    rows = truth_rows(annotations, annotations.image_ids[truths.images], annotations.category_ids[annotations.classes])
    bounds = annotations.polygon_starts
    for index in np.flatnonzero(np.diff(bounds)):
        points = annotations.polygons[bounds[index] : bounds[index + 1]]
        rows[index]["segmentation"] = [points.astype(np.float64).ravel().tolist()]
    return {"info": {}, "images": images, "annotations": rows, "categories": categories}


def detections_to_json(annotations: Annotations, detections: Detections) -> Results:
    """List detections in COCO's result form, with the data set's ids, unrounded: they score as what was measured."""
    found = detections.table()
    image_ids, category_ids = annotations.image_ids[found.images], annotations.category_ids[found.classes]
    columns = (image_ids, category_ids, found.boxes, found.confidences)
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for image_id, category_id, box, score in zip(*(column.tolist() for column in columns), strict=True)
    ]


def submission_name(split: str, weights: Path) -> str:
    """The name that COCO's server asks of a result file: detections_SPLIT_NAME_results.json, NAME that of the weights.

    `split` may be the stem of a COCO json, whose names put another word before it.
    """
    name = re.sub(r"[^\w.-]+", "-", weights.stem)
    return f"detections_{split.removeprefix('image_info_').removeprefix('instances_')}_{name}_results.json"


def official(
    truth: Annotations | Path,
    results: Results | Path,
    *,
    image_ids: Sequence[int] | None = None,
    category_ids: Sequence[int] | None = None,
) -> dict[str, float]:
    """The 12 figures by pycocotools, nan where it says -1.

    Args:
        truth: annotations, or a COCO json.
        results: detections in COCO's result form, or a json of them.
        image_ids: the images that count, all of the truth's when None.
        category_ids: the categories that count, all of the truth's when None.
    """
    dataset = _completed(_read_json(truth)) if isinstance(truth, Path) else to_coco_json(truth)
    rows = _read_json(results) if isinstance(results, Path) else results
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = pycocotools_evaluation(dataset, rows)
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        if category_ids is not None:
            evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {key: _nan_for_minus_one(value) for key, value in zip(COCO_FIGURES, evaluation.stats.tolist(), strict=True)}


def pycocotools_evaluation(dataset: Mapping[str, Any], rows: Results) -> pycocotools.cocoeval.COCOeval:
    """Prepare pycocotools' evaluation of boxes, of detections in COCO's result form; it prints."""
    gold, answer = pycocotools.coco.COCO(), pycocotools.coco.COCO()
    gold.dataset, answer.dataset = dataset, {**dataset, "annotations": []}
    gold.createIndex()
    if rows:  # loadRes cannot read an empty list, and writes into what it is given
        answer = gold.loadRes([dict(row) for row in rows])
    return pycocotools.cocoeval.COCOeval(gold, answer, "bbox")


def _completed(dataset: dict[str, Any]) -> dict[str, Any]:
    """Give annotations the id, area and iscrowd that pycocotools asks for; those that training leaves out go here, too.

    Ids count from 1: figures do not depend on them, unless one is 0 or there twice.
    """
    entries = dataset.get("annotations", [])
    objects = [(entry, found) for entry in entries if isinstance(found := read_object(entry), CocoObject)]
    filled = [
        {**entry, "id": number, "area": found.area, "iscrowd": found.crowd}
        for number, (entry, found) in enumerate(objects, 1)
    ]
    return {**dataset, "annotations": filled}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _nan_for_minus_one(value: float) -> float:
    return math.nan if value == -1 else value
