"""The recipes of trainings: the keys that a YAML in data/hyps/ may hold, with YOLOv5's names and defaults."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from utils.options import InputError, find_yaml, from_mapping, read_yaml

OPTIMIZERS = ("SGD", "Adam", "AdamW")
AUTO = "auto"
SPD_STARTS = ("full", "lifted")
SHARES = (
    "flipud",
    "fliplr",
    "mosaic",
    "mixup",
    "copy_paste",
    "label_smoothing",
    "hsv_h",
    "hsv_s",
    "hsv_v",
    "scale",
    "tile_visible",
    "min_visible",
    "lr_steps",
    "lr_step_factor",
    "crop_padding",
    "mean",
    "std",
)
RANGES: dict[str, tuple[float, float]] = {  # of the others, any number that is not negative
    **dict.fromkeys(SHARES, (0, 1)),
    **dict.fromkeys(("momentum", "warmup_momentum"), (0, 0.9999)),
    "ema_decay": (0, 0.999999),
    "anchor_t": (1.01, math.inf),
    "nominal_batch": (1, math.inf),
    "ema_tau": (1, math.inf),
    "anchors": (1, 100),
    "tile_empty": (0, 0.9),
}


@dataclass(frozen=True)
class Recipe:
    """What the recipes of all tasks have: the optimizer, its schedule, and the average of the weights."""

    optimizer: str | None = None  # the recipe's own choice; --optimizer has the last word
    lr0: float = 0.01  # learning rate after the warm-up
    lrf: float = 0.01  # its share left at the end
    lr_steps: list[float] = field(default_factory=list)  # shares of the run where the rate falls, in place of a slope
    lr_step_factor: float = 0.2  # what it is multiplied by there
    momentum: float = 0.937  # SGD's momentum, Adam's beta1
    nesterov: bool = True  # of SGD
    weight_decay: float = 0.0005  # at the nominal batch of 64
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    nominal_batch: int = 64  # gradients are accumulated up to about so many images
    ema_decay: float = 0.9999  # of the average of the weights: its memory is of about 1 / (1 - decay) updates
    ema_tau: float = 2000.0  # updates after which the average's decay has come 63 % of its way
    label_smoothing: float = 0.0

    def check(self, source: str) -> None:
        """Refuse values that no training can do with; `source` is where they come from.

        Raises:
            InputError: it names the key, and what was expected.
        """
        if self.optimizer not in (None, *OPTIMIZERS):
            raise InputError(f"{source}: optimizer: expected one of {', '.join(OPTIMIZERS)}, found {self.optimizer!r}")
        for key in fields(self):
            given = getattr(self, key.name)
            least, most = RANGES.get(key.name, (0, math.inf))
            for value in given if isinstance(given, list) else [given]:
                number = isinstance(value, float | int)
                if (number and not least <= value <= most) or (isinstance(given, list) and not number):
                    raise InputError(f"{source}: {key.name}: expected {least:g} to {most:g}, found {value}")


R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True)
class Hyp(Recipe):
    """A detector's hyperparameters; gains are for 80 classes, 3 scales and 640 px, as `scaled_gains` says."""

    spd_init: str = "full"  # how space-to-depth's readers start from scratch; "lifted": as in a strided model
    box: float = 0.05
    cls: float = 0.5
    cls_pw: float | str = 1.0  # weight of a positive in the class loss; "auto": more for rarer classes
    obj: float = 1.0
    obj_pw: float = 1.0
    anchor_t: float = 4.0  # largest ratio of a box's side to its anchor's
    anchors: float | None = None  # anchors on each scale, when not the model's own; rounded
    fl_gamma: float = 0.0  # focal loss's gamma; 0 is none
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0
    translate: float = 0.1
    scale: float = 0.5
    shear: float = 0.0
    perspective: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.5
    mosaic: float = 1.0
    mixup: float = 0.0
    copy_paste: float = 0.0
    tile_visible: float = 0.3  # with --tile: least share of a cut box that a tile must show to have it as a label
    tile_empty: float = 0.2  # with --tile: share of the tiles that are drawn where no object's centre is
    min_side: float = 2.0  # pixels; an augmented image keeps boxes that are wider and higher
    min_visible: float = 0.1  # share of a box that must be left in it

    def check(self, source: str) -> None:
        """Refuse values that no training can do with."""
        super().check(source)
        if self.spd_init not in SPD_STARTS:
            raise InputError(f"{source}: spd_init: expected one of {', '.join(SPD_STARTS)}, found {self.spd_init!r}")
        if isinstance(self.cls_pw, str) and self.cls_pw != AUTO:
            raise InputError(f"{source}: cls_pw: expected a number or {AUTO}, found {self.cls_pw!r}")

    def scaled_gains(self, classes: int, scales: int, size: int) -> dict[str, float]:
        """The gains of the three losses for a data set and a model, as YOLOv5 scales them."""
        share = 3 / scales
        return {
            "box": self.box * share,
            "obj": self.obj * share * (size / 640) ** 2,
            "cls": self.cls * share * classes / 80,
        }


def load_hyp(name: str | Path) -> Hyp:
    """Read a detector's recipe, found as given or in data/hyps/.

    Raises:
        InputError: no such file, an unknown key, or a value out of its range.
    """
    return read_recipe(Hyp, name, ignored=("iou_t",))  # in every recipe of YOLOv5's, and read by nothing there


def read_recipe(cls: type[R], name: str | Path, *, ignored: Sequence[str] = ()) -> R:
    """Read a recipe of a task, found as given or in data/hyps/.

    Raises:
        InputError: no such file, an unknown key, or a value out of its range.
    """
    content = read_yaml(find_yaml(name, "data/hyps", "data"))
    return to_recipe(cls, {key: value for key, value in content.items() if key not in ignored}, str(name))


def to_recipe(cls: type[R], content: Mapping[str, Any], source: str) -> R:
    """Make a recipe of a task from what a file or a checkpoint holds.

    Raises:
        InputError: an unknown key, or a value out of its range.
    """
    hyp = from_mapping(cls, content, source)
    hyp.check(source)
    return hyp
