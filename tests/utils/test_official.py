"""COCO's json files carry ids, sizes and outlines, and pycocotools' figures on them are ours."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.annotations import read_annotations
from data.config import load_data_config
from tests.utils.splits import SQUARES, detections_of, truth_of
from utils.coco import COCO_FIGURES, evaluate_coco
from utils.official import detections_to_json, official, submission_name, to_coco_json


def test_json_files_carry_ids_sizes_and_polygons(tmp_path):
    truth = truth_of(SQUARES, ["a", "b"], image_ids=[42, 7, 1000], category_ids=[18, 3], areas=[300, 2500, 400])
    truth = replace(
        truth,
        polygons=np.float32([[10, 10], [30, 10], [30.5, 30]]),
        polygon_starts=np.array([0, 3, 3, 3]),
    )
    gold = to_coco_json(truth)
    assert gold["images"][0] == {"id": 42, "file_name": "000.png", "width": 640, "height": 480}
    assert gold["categories"] == [{"id": 18, "name": "a"}, {"id": 3, "name": "b"}]
    assert gold["annotations"][0] == {
        "id": 1,
        "image_id": 42,
        "category_id": 18,
        "bbox": [10, 10, 20, 20],
        "area": 300,
        "iscrowd": 0,
        "segmentation": [[10, 10, 30, 10, 30.5, 30]],
    }
    assert "segmentation" not in gold["annotations"][1]

    found = detections_of({2: [[30, 30, 50.12345, 50, 0.1234567, 0]], 0: [[100, 100, 150, 150, 0.5, 1]]})
    results = detections_to_json(truth, found)
    width, score = np.float32(50.12345) - np.float32(30), np.float32(0.1234567)  # as they were found, unrounded
    assert results == [
        {"image_id": 1000, "category_id": 18, "bbox": [30, 30, float(width), 20], "score": float(score)},
        {"image_id": 42, "category_id": 3, "bbox": [100, 100, 50, 50], "score": 0.5},
    ]
    for name, content in (("gold.json", gold), ("results.json", results)):
        (tmp_path / name).write_text(json.dumps(content))
    figures = official(tmp_path / "gold.json", tmp_path / "results.json")
    assert list(figures) == list(COCO_FIGURES)
    assert list(figures.values()) == pytest.approx(list(official(truth, results).values()), nan_ok=True)
    assert figures["AR100"] == pytest.approx(0.75)
    alone = official(tmp_path / "gold.json", tmp_path / "results.json", image_ids=[42])
    assert alone["AR100"] == pytest.approx(0.5)


@pytest.fixture
def coco_yaml(tmp_path):
    """A data YAML of four images with a json of all that COCO's have, and more categories than the YAML has names."""
    (tmp_path / "images").mkdir()
    images = [{"id": 10 * n + 7, "file_name": f"{n}.png", "width": 200, "height": 150} for n in range(4)]
    for image in images:
        cv2.imwrite(str(tmp_path / "images" / image["file_name"]), np.zeros((150, 200, 3), np.uint8))
    boxes = [
        (7, 3, [10, 10, 40, 40], {"area": 700.0, "segmentation": [[10, 10, 50, 10, 50, 50]]}),  # small by its mask
        (7, 90, [60, 60, 50, 50], {"area": 1500.0, "ignore": 1}),  # which pycocotools does not look at
        (17, 3, [0, 0, 100, 100], {"area": 4000.0, "iscrowd": 1, "segmentation": {"counts": [0, 9], "size": [3, 3]}}),
        (17, 90, [120, 20, 30, 60], {"area": 1800.0}),
        (37, 3, [20, 20, 110, 110], {"area": 12100.0}),
        (37, 44, [5, 5, 20, 20], {"area": 400.0}),  # of a category without a name
    ]
    content = {
        "images": images[::-1],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0, **more}
            for n, (image, category, box, more) in enumerate(boxes, 1)
        ],
        "categories": [{"id": number, "name": f"c{number}"} for number in (90, 44, 3)],
    }
    (tmp_path / "gold.json").write_text(json.dumps(content))
    yaml = tmp_path / "data.yaml"
    yaml.write_text("val: images\nannotations: {val: gold.json}\nnames: [c90, c3, absent]\n")
    return yaml


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_a_coco_json_are_those_of_pycocotools_on_it(coco_yaml, seed):
    config = load_data_config(coco_yaml)
    table = read_annotations(config, "val")
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(len(table)), table.counts)
    near = table.boxes + rng.normal(0, 3, table.boxes.shape)
    far = np.c_[rng.uniform(0, 60, (12, 2)), rng.uniform(10, 80, (12, 2))]
    boxes = np.r_[near, far]
    labels = np.r_[table.classes, rng.integers(0, 3, 12)]
    rows = np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:], rng.integers(1, 9, len(boxes)) / 10, labels]
    images = np.r_[owners, rng.integers(0, 4, 12)]
    found = detections_of({index: rows[images == index].tolist() for index in range(4)})
    ours = evaluate_coco(table, found).figures
    ids = {"image_ids": table.image_ids.tolist(), "category_ids": table.category_ids.tolist()}
    theirs = official(config.annotations["val"], detections_to_json(table, found), **ids)
    assert [ours[key] for key in COCO_FIGURES] == pytest.approx(list(theirs.values()), abs=1e-6, nan_ok=True)
    assert 0 < ours["AP_S"] < 1
    assert {row["category_id"] for row in detections_to_json(table, found)} == {90, 3, 91}


def test_a_json_needs_no_more_than_the_reader_does(coco_yaml):
    gold = coco_yaml.with_name("gold.json")
    content = json.loads(gold.read_text())
    for entry in content["annotations"]:
        del entry["id"], entry["iscrowd"], entry["area"]
    faulty = [{"bbox": None}, {}, {"bbox": [1, 1, 5, 5], "area": None}, {"bbox": [1, 1, 5, 5], "iscrowd": "no"}]
    content["annotations"] += [{"image_id": 7, "category_id": 3, **entry} for entry in faulty]
    gold.write_text(json.dumps(content))
    config = load_data_config(coco_yaml)
    table = read_annotations(config, "val")
    xyxy = np.c_[table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]]
    owners = np.repeat(np.arange(len(table)), table.counts)
    rows = np.c_[xyxy, np.linspace(0.9, 0.4, len(xyxy)), table.classes]
    found = detections_of({index: rows[owners == index][1:].tolist() for index in range(4)})
    ids = {"image_ids": table.image_ids.tolist(), "category_ids": table.category_ids.tolist()}
    theirs = official(gold, detections_to_json(table, found), **ids)
    ours = evaluate_coco(table, found).figures
    assert [ours[key] for key in COCO_FIGURES] == pytest.approx(list(theirs.values()), abs=1e-6, nan_ok=True)
    assert 0 < theirs["AP"] < 1


@pytest.mark.parametrize(
    ("split", "weights", "name"),
    [
        ("image_info_test-dev2017", "runs/best.pt", "detections_test-dev2017_best_results.json"),
        ("instances_val2017", "my model/é 2.pt", "detections_val2017_é-2_results.json"),
        ("mine-test", "a_b.v2.pt", "detections_mine-test_a_b.v2_results.json"),
    ],
)
def test_name_of_a_submission(split, weights, name):
    assert submission_name(split, Path(weights)) == name
