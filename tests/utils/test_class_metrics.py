"""A classifier's figures against plain loops, and its recipes."""

import math
from pathlib import Path

import numpy as np
import pytest

from utils.class_hyp import load_class_hyp
from utils.class_metrics import ClassMetrics, Guesses
from utils.optim import Schedule
from utils.options import ROOT, InputError


def made(classes: int, count: int = 200) -> ClassMetrics:
    rng = np.random.default_rng(classes)
    logits, labels = rng.normal(size=(count, classes)), rng.integers(0, classes, count)
    order = np.argsort(-logits, axis=1)[:, : min(5, classes)]
    return ClassMetrics([str(n) for n in range(classes)], labels, Guesses(order, np.take_along_axis(logits, order, 1)))


@pytest.mark.parametrize("classes", [2, 5, 7, 30])
def test_figures_are_those_of_a_plain_loop(classes: int) -> None:
    metrics = made(classes)
    pairs = list(zip(metrics.labels.tolist(), metrics.guesses.classes.tolist(), strict=True))
    assert metrics.figures["top1"] == pytest.approx(sum(label == found[0] for label, found in pairs) / len(pairs))
    if classes > 5:
        assert metrics.figures["top5"] == pytest.approx(sum(label in found for label, found in pairs) / len(pairs))
    else:
        assert math.isnan(metrics.figures["top5"])
    for number, row in enumerate(metrics.per_class()):
        hit = sum(label == number == found[0] for label, found in pairs)
        said, true = sum(found[0] == number for _, found in pairs), sum(label == number for label, _ in pairs)
        assert row["images"] == true
        assert [row["P"], row["R"], row["F1"]] == pytest.approx([hit / said, hit / true, 2 * hit / (said + true)])
    assert metrics.matrix.sum() == len(pairs)


def test_classes_that_are_never_guessed_count_as_precision_0() -> None:
    guesses = Guesses(np.zeros((4, 1), np.int64), np.ones((4, 1)))
    metrics = ClassMetrics(["a", "b", "absent"], np.array([0, 0, 0, 1]), guesses)
    assert [row["P"] for row in metrics.per_class()] == pytest.approx([0.75, 0, math.nan], nan_ok=True)
    assert metrics.figures["P"] == pytest.approx(0.375)


def test_the_worst_mistakes_come_first() -> None:
    guesses = Guesses(np.array([[0], [1], [1], [0]]), np.array([[0.9], [0.6], [0.8], [0.7]]))
    assert ClassMetrics(["a", "b"], np.array([0, 0, 0, 1]), guesses).mistakes().tolist() == [2, 3, 1]


@pytest.mark.parametrize("name", ["glyph-crops", "classes", "resnet18-tinyimagenet", "resnet50-cifar10"])
def test_shipped_recipes_are_read(name: str) -> None:
    assert load_class_hyp(f"{name}.yaml").optimizer == "SGD"


def test_the_authors_rates_fall_at_their_epochs() -> None:
    hyp = load_class_hyp(ROOT / "data/hyps/resnet18-tinyimagenet.yaml")
    schedule = Schedule(hyp, 200, 391, 256)
    rates = [hyp.lr0 * schedule.share(epoch) for epoch in (0, 59, 60, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.01793] * 2 + [0.003586] * 2 + [0.000717] * 2 + [0.000143] * 2, rel=1e-2)
    assert schedule.warmup == 391


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mosaic: 1.0", "unknown key 'mosaic'"),
        ("mean: [0.5, 0.5]", "mean: expected three numbers, or none"),
        ("mean: [0.5, 0.5, 0.5]", "mean and std: expected both or none"),
        ("lr_steps: [0.3, 60]", "lr_steps: expected 0 to 1, found 60"),
        ("lr_steps: [a]", "lr_steps: expected 0 to 1, found a"),
        ("fliplr: 2", "fliplr: expected 0 to 1, found 2"),
        ("crop_padding: 4", "crop_padding: expected 0 to 1, found 4"),  # pixels
        ("mean: [122.5, 114.3, 101.4]", "mean: expected 0 to 1, found 122.5"),
    ],
)
def test_a_recipes_mistake_is_told(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_class_hyp(tmp_path / "x.yaml")
