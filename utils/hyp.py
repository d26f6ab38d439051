"""The recipe of a training: the keys that a YAML in data/hyps/ may hold, with YOLOv5's names and defaults."""

import math
from dataclasses import dataclass, fields
from pathlib import Path

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
)
RANGES: dict[str, tuple[float, float]] = {  # of the others, any number that is not negative
    **dict.fromkeys(SHARES, (0, 1)),
    **dict.fromkeys(("momentum", "warmup_momentum"), (0, 0.9999)),
    "anchor_t": (1.01, math.inf),
    "nominal_batch": (1, math.inf),
    "ema_tau": (1, math.inf),
    "anchors": (1, 100),
    "tile_empty": (0, 0.9),
}


@dataclass(frozen=True)
class Hyp:
    """Hyperparameters; gains are for 80 classes, 3 scales and 640 px, as `scaled_gains` says."""

    optimizer: str | None = None  # the recipe's own choice; --optimizer has the last word
    spd_init: str = "full"  # how space-to-depth's readers start from scratch; "lifted": as in a strided model
    lr0: float = 0.01  # learning rate after the warm-up
    lrf: float = 0.01  # its share left at the end
    momentum: float = 0.937  # SGD's momentum, Adam's beta1
    weight_decay: float = 0.0005  # at the nominal batch of 64
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    nominal_batch: int = 64  # gradients are accumulated up to about so many images
    ema_tau: float = 2000.0  # updates after which the average's decay has come 63 % of its way
    box: float = 0.05
    cls: float = 0.5
    cls_pw: float | str = 1.0  # weight of a positive in the class loss; "auto": more for rarer classes
    obj: float = 1.0
    obj_pw: float = 1.0
    anchor_t: float = 4.0  # largest ratio of a box's side to its anchor's
    anchors: float | None = None  # anchors on each scale, when not the model's own; rounded
    fl_gamma: float = 0.0  # focal loss's gamma; 0 is none
    label_smoothing: float = 0.0
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

    def scaled_gains(self, classes: int, scales: int, size: int) -> dict[str, float]:
        """The gains of the three losses for a data set and a model, as YOLOv5 scales them."""
        share = 3 / scales
        return {
            "box": self.box * share,
            "obj": self.obj * share * (size / 640) ** 2,
            "cls": self.cls * share * classes / 80,
        }


def load_hyp(name: str | Path) -> Hyp:
    """Read a recipe, found as given or in data/hyps/.

    Raises:
        InputError: no such file, an unknown key, or a value out of its range.
    """
    path = find_yaml(name, "data/hyps", "data")
    content = read_yaml(path)
    content.pop("iou_t", None)  # in every recipe of YOLOv5's, and read by nothing there
    hyp = from_mapping(Hyp, content, str(name))
    if hyp.optimizer not in (None, *OPTIMIZERS):
        raise InputError(f"{name}: optimizer: expected one of {', '.join(OPTIMIZERS)}, found {hyp.optimizer!r}")
    if hyp.spd_init not in SPD_STARTS:
        raise InputError(f"{name}: spd_init: expected one of {', '.join(SPD_STARTS)}, found {hyp.spd_init!r}")
    if isinstance(hyp.cls_pw, str) and hyp.cls_pw != AUTO:
        raise InputError(f"{name}: cls_pw: expected a number or {AUTO}, found {hyp.cls_pw!r}")
    for field in fields(Hyp):
        value = getattr(hyp, field.name)
        least, most = RANGES.get(field.name, (0, math.inf))
        if isinstance(value, float | int) and not least <= value <= most:
            raise InputError(f"{name}: {field.name}: expected {least:g} to {most:g}, found {value:g}")
    return hyp
