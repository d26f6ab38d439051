"""The evaluator against pycocotools, and on cases counted by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.utils.splits import SQUARES, detections_of, evaluated_by_pycocotools, random_set, truth_of
from utils.areas import parse_bands
from utils.coco import COCO_FIGURES, FIGURES, evaluate_coco, truth_table
from utils.official import detections_to_json, official


def assert_same_figures(truth, detections):
    ours = evaluate_coco(truth, detections).figures
    expected = official(truth, detections_to_json(truth, detections))
    assert [ours[key] for key in COCO_FIGURES] == pytest.approx(list(expected.values()), abs=1e-6, nan_ok=True)
    return ours


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    levels=st.sampled_from([3, 20, 10_000]),
    boxes=st.integers(0, 10),
    found=st.sampled_from([10, 40, 400]),
)
def test_figures_equal_pycocotools(seed, levels, boxes, found):
    assert_same_figures(*random_set(seed, images=6, levels=levels, most_boxes=boxes, most_found=found))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sides=st.lists(st.integers(1, 300), min_size=1, max_size=5, unique=True).map(sorted),
    max_det=st.integers(101, 200),
)
def test_bands_and_recall_of_many_detections_equal_pycocotools(seed, sides, max_det):
    truth, detections = random_set(seed, images=4, classes=2, labelled_classes=2, most_found=400)
    bands = parse_bands(",".join(map(str, [0, *sides, "inf"])))
    figures = evaluate_coco(truth, detections, bands=bands, max_det=max_det).figures
    arrays = evaluated_by_pycocotools(truth, detections, bands=bands, limits=(1, 10, 100, max_det)).eval
    expected = {f"AR{max_det}": arrays["recall"][:, :, 0, 3], "AP": arrays["precision"][:, :, :, 0, 2]}
    for number, name in enumerate(bands, 1):
        expected |= {f"AP_{name}": arrays["precision"][:, :, :, number, 2]}
        expected |= {f"AR_{name}": arrays["recall"][:, :, number, 2]}
    for key, values in expected.items():
        mean = values[values > -1].mean() if (values > -1).any() else math.nan
        assert figures[key] == pytest.approx(mean, abs=1e-6, nan_ok=True), key
    assert len(figures) == 3 + 3 + 4 + 2 * len(bands)


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_pycocotools_beyond_100_detections(seed):
    truth, detections = random_set(seed, images=4, classes=2, labelled_classes=2, most_found=500)
    counts = np.bincount(detections.table().images * 2 + detections.table().classes)
    assert counts.max() > 130
    figures = assert_same_figures(truth, detections)
    assert figures["AR1"] < figures["AR100"]


def test_figures_equal_pycocotools_at_scale():
    truth, detections = random_set(7, images=150, classes=8, labelled_classes=7)
    figures = assert_same_figures(truth, detections)
    assert 0.1 < figures["AP"] < 0.9
    assert not any(math.isnan(value) for value in figures.values())


def test_per_class_rows_are_the_classes_evaluated_alone():
    truth, detections = random_set(11, classes=4, labelled_classes=3)
    metrics = evaluate_coco(truth, detections)
    arrays = evaluated_by_pycocotools(truth, detections).eval
    sorted_ids = sorted(truth.category_ids.tolist())
    image_of_box = truth_table(truth).images
    for kind, row in enumerate(metrics.per_class):
        column = sorted_ids.index(truth.category_ids[kind])
        plain = (truth.classes == kind) & ~truth.crowd
        assert (row.name, row.labels) == (truth.names[kind], plain.sum())
        assert row.images == len(set(image_of_box[plain]))
        expected = {
            "AP": arrays["precision"][:, :, column, 0, 2],
            "AP50": arrays["precision"][0, :, column, 0, 2],
            "AP75": arrays["precision"][5, :, column, 0, 2],
            "AP_S": arrays["precision"][:, :, column, 1, 2],
            "AP_M": arrays["precision"][:, :, column, 2, 2],
            "AP_L": arrays["precision"][:, :, column, 3, 2],
            "AR100": arrays["recall"][:, column, 0, 2],
        }
        for key, values in expected.items():
            mean = math.nan if values.min() < 0 else values.mean()
            assert row.figures[key] == pytest.approx(mean, abs=1e-9, nan_ok=True), key
    absent = metrics.per_class[3]
    assert absent.labels == 0
    assert all(math.isnan(value) for value in absent.figures.values())
    shared = ("P", "R", "F1", "AP", "AR100")
    rows = np.array([[row.figures[key] for key in shared] for row in metrics.per_class[:3]])
    assert rows.mean(0) == pytest.approx([metrics.figures[key] for key in shared])


def test_perfect_detections():
    truth = truth_of(SQUARES, ["a", "b", "c"])
    found = detections_of({0: [[10, 10, 30, 30, 0.9, 0], [100, 100, 150, 150, 0.8, 1]], 2: [[30, 30, 50, 50, 0.7, 0]]})
    metrics = evaluate_coco(truth, found)
    assert list(metrics.figures) == list(FIGURES)
    assert [metrics.figures[key] for key in ("P", "R", "AP", "AP50", "AP_S", "AP_M", "AR100")] == pytest.approx([1] * 7)
    assert metrics.figures["AR1"] == pytest.approx(1)
    assert evaluate_coco(truth, found, max_det=300).figures["AR300"] == metrics.figures["AR100"]  # few enough for both
    assert math.isnan(metrics.figures["AP_L"])
    plain = metrics.to_json()
    assert plain["AP_L"] is None
    assert plain["AR_L"] is None
    assert json.loads(json.dumps(plain, allow_nan=False))["confidence"] == metrics.confidence == 0
    assert metrics.curves.precision_at_recall.shape == (3, 101)
    assert metrics.curves.precision_at_recall[:2] == pytest.approx(np.ones((2, 101)))
    assert metrics.curves.present.tolist() == [True, True, False]


@pytest.mark.parametrize(
    "found", [{}, {0: []}, {1: [[5, 5, 9, 9, 0.5, 2]]}], ids=["none", "empty rows", "absent class"]
)
def test_nothing_right_is_zero(found):
    truth = truth_of(SQUARES, ["a", "b", "c"])
    figures = assert_same_figures(truth, detections_of(found))
    assert {figures[key] for key in ("P", "R", "AP", "AP50", "AR100")} == {0}


@pytest.mark.parametrize(
    "images", [[], [[], []], [[[0, 5, 5, 50, 50, 1]], []]], ids=["no images", "empty", "crowd only"]
)
def test_nothing_to_find_is_nan(images):
    truth = truth_of(images, ["a", "b"])
    found = detections_of({0: [[5, 5, 60, 60, 0.9, 0]]} if images else {})
    metrics = evaluate_coco(truth, found)
    assert all(math.isnan(value) for value in metrics.figures.values())
    assert math.isnan(metrics.confidence)
    assert set(metrics.to_json().values()) == {None}
    assert all(math.isnan(value) for value in official(truth, detections_to_json(truth, found)).values())


def test_class_beyond_the_names_is_refused():
    with pytest.raises(AssertionError, match="beyond the names"):
        evaluate_coco(truth_of(SQUARES, ["a", "b"]), detections_of({0: [[0, 0, 5, 5, 0.5, 2]]}))


def test_evaluation_prints_nothing(capfd):
    truth, detections = random_set(0, images=3)
    evaluate_coco(truth, detections)
    official(truth, detections_to_json(truth, detections))
    assert capfd.readouterr() == ("", "")
