"""Lifting the head: classes find each other by name or place, anchors are carried, or the head starts anew."""

import copy

import pytest
import torch

from tests.utils.lifting import BACKBONE, SPD_BACKBONE, fresh, narrow, outputs, small, strided
from utils.lift import lift


def test_classes_find_each_other_by_name() -> None:
    old, weights = strided(narrow("yolov5n.yaml"))
    names = ["sun", "pen", "car"]
    new = fresh(narrow("yolov5-spd-n.yaml"), names)
    start = copy.deepcopy(new.head)
    report = lift(weights, new)
    assert report is not None
    expected = outputs(old, [0, 1, 2, 3, 4, 8, 5])
    torch.testing.assert_close(outputs(new, [0, 1, 2, 3, 4, 6, 7]), expected, rtol=1e-4, atol=1e-4)
    for level, before in zip(new.head.m, start.m, strict=True):
        for name, tensor in level.named_parameters():
            ours, theirs = (x.view(3, 8, -1)[:, 5] for x in (tensor, before.get_parameter(name)))
            assert torch.equal(ours, theirs)  # the sun keeps its start
    assert report.rows[-1].anew == ["class sun"]
    assert report.difference < 1e-5


@pytest.mark.parametrize(
    ("names", "pairs", "anew"),
    [
        (["pen", "cup", "dog", "car"], [8, 7, 6, 5], []),
        (["a", "b", "c", "d"], [5, 6, 7, 8], []),  # other names, as many: by their place
        (["a", "b", "c"], [], ["class a", "class b", "class c"]),
    ],
)
def test_number_and_order_of_classes(names: list[str], pairs: list[int], anew: list[str]) -> None:
    old, weights = strided(small(*BACKBONE))
    new = fresh(small(*SPD_BACKBONE), names)
    report = lift(weights, new)
    assert report is not None
    found = outputs(new, [*range(5 + len(pairs))])
    torch.testing.assert_close(found, outputs(old, [*range(5), *pairs]), rtol=1e-4, atol=1e-4)
    assert report.rows[-1].anew == anew
    assert new.names == names


def test_anchors_are_carried_unless_unwanted() -> None:
    old, weights = strided(small(*BACKBONE))
    config = small(*SPD_BACKBONE) | {"anchors": 2}
    new = fresh(config)
    assert lift(weights, new) is not None
    assert torch.equal(new.head.anchors, old.head.anchors)
    torch.testing.assert_close(
        torch.tensor(new.config["anchors"]).view(1, 2, 2), old.head.anchors_in_pixels(), rtol=0, atol=0.006
    )
    other = fresh(config)
    report = lift(weights, other, anchors=False)
    assert report is not None
    assert torch.equal(other.head.anchors, fresh(config).head.anchors)
    assert other.config["anchors"] == 2
    assert report.rows[-1].anew == ["anchors"]
    assert report.difference < 1e-5  # of what does not depend on them


def test_other_numbers_of_anchors_leave_the_head_as_it_was() -> None:
    _, weights = strided(small(*BACKBONE))
    new = fresh(small(*SPD_BACKBONE) | {"anchors": 3})
    report = lift(weights, new)
    assert report is not None
    assert report.rows[-1].carried == []
    assert torch.equal(new.head.m[0].weight, fresh(small(*SPD_BACKBONE) | {"anchors": 3}).head.m[0].weight)
