"""The recipe of a classifier's training: the keys that a YAML in data/hyps/ may hold."""

from dataclasses import dataclass, field
from pathlib import Path

from utils.hyp import Recipe, read_recipe
from utils.options import InputError


@dataclass(frozen=True)
class ClassHyp(Recipe):
    """A classifier's hyperparameters; the optimizer's and the schedule's are those of every recipe."""

    crop_padding: float = 0.125  # share of the side that is added all round, in black, before a crop is taken
    fliplr: float = 0.5
    flipud: float = 0.0
    degrees: float = 0.0  # of rotation, either way
    mean: list[float] = field(default_factory=list)  # of red, green and blue in 0..1; none: measured on the images
    std: list[float] = field(default_factory=list)

    def check(self, source: str) -> None:
        """Refuse values that no training can do with."""
        super().check(source)
        for key in ("mean", "std"):
            if len(getattr(self, key)) not in (0, 3):
                raise InputError(f"{source}: {key}: expected three numbers, or none, found {getattr(self, key)}")
        if bool(self.mean) != bool(self.std):
            raise InputError(f"{source}: mean and std: expected both or none")


def load_class_hyp(name: str | Path) -> ClassHyp:
    """Read a classifier's recipe, found as given or in data/hyps/.

    Raises:
        InputError: no such file, an unknown key, or a value out of its range.
    """
    return read_recipe(ClassHyp, name)
