"""What a validation decides by itself: the fitness that the best epoch is chosen by."""

import pytest

from utils.options import InputError
from utils.validation import FITNESS, parse_fitness


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        (FITNESS, {"AP50": 0.1, "AP": 0.9}),
        ("AP_S", {"AP_S": 1.0}),
        ("AR100", {"AR100": 1.0}),
        ("F1", {"F1": 1.0}),
        ("1 AP_S+0.5 R", {"AP_S": 1.0, "R": 0.5}),
    ],
)
def test_a_fitness_is_a_sum_of_figures(text: str, weights: dict[str, float]) -> None:
    assert parse_fitness(text) == weights


@pytest.mark.parametrize("text", ["", "mAP", "AP50 AP", "x AP", "0.5 AP + ", "nan AP", "0.1*AP"])
def test_another_fitness_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a sum such as"):
        parse_fitness(text)


def test_a_figure_counts_once() -> None:
    with pytest.raises(InputError, match="names AP twice"):
        parse_fitness("0.1 AP + 0.9 AP")
