"""Parts of a training made from the model, the recipe and the data: fitted anchors, frozen rows, the loss."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.annotations import Annotations
from data.rows import Floats
from models.yolo import Model
from utils.anchors import fit_anchors
from utils.hyp import AUTO, Hyp
from utils.loss import DetectionLoss
from utils.options import InputError

LOGGER = logging.getLogger("yolov5-spd")
BACKBONE = "backbone"
MOST_CLASS_WEIGHT = 10.0


def fit_model_anchors(model: Model, boxes: Floats, anchor_t: float, *, always: bool = False) -> None:
    """Fit a model's anchors to the boxes' sizes (M, 2) as the model sees them in training, and say how they fit."""
    given = model.head.anchors_in_pixels().cpu().double().numpy()
    fitted, before, after = fit_anchors(boxes[(boxes > 0).all(1)], given, anchor_t, always=always)
    if fitted is given:
        LOGGER.info(f"anchors: {before}; kept")
        return
    LOGGER.info(f"anchors: {before}; fitted anew: {after}")
    model.head.set_anchors(torch.from_numpy(fitted))
    model.config["anchors"] = fitted.reshape(len(fitted), -1).round(2).tolist()


def freeze(model: Model, wanted: Sequence[str]) -> None:
    """Stop the gradients of rows: of the backbone, of the first so many for one number, of those rows for several.

    Raises:
        InputError: there are no such rows, or none would be left to learn.
    """
    count = len(model.model)
    try:
        numbers = [len(model.config[BACKBONE]) if text == BACKBONE else int(text) for text in wanted]
    except ValueError:
        raise InputError(f"--freeze {' '.join(wanted)}: expected row numbers, or {BACKBONE}") from None
    rows = range(numbers[0]) if len(numbers) == 1 else numbers
    if min(numbers) < 0 or any(row >= count for row in rows) or len(set(rows)) == count:
        raise InputError(
            f"--freeze {' '.join(wanted)}: the model has rows 0 to {count - 1}, and one must be left to learn"
        )
    for row in rows:
        model.model[row].requires_grad_(False)
    if rows:
        LOGGER.info(f"frozen rows: {', '.join(map(str, rows))}")


def class_weights(table: Annotations) -> Tensor:
    """Weight of a positive of each class (nc): 1 for the most frequent, more for others by the root of their rarity."""
    counts = np.bincount(table.classes[~table.crowd], minlength=len(table.names))
    rarity = counts.max(initial=1) / np.maximum(counts, 1)
    return torch.from_numpy(np.where(counts > 0, np.minimum(np.sqrt(rarity), MOST_CLASS_WEIGHT), 1.0)).float()


def make_loss(model: Model, hyp: Hyp, table: Annotations, size: int) -> DetectionLoss:
    """Make the loss that a recipe asks for, for a model trained on these boxes at `size` px."""
    head = model.head
    return DetectionLoss(
        head.anchors,
        head.classes,
        hyp.scaled_gains(head.classes, len(head.strides), size),
        anchor_t=hyp.anchor_t,
        cls_pw=class_weights(table) if hyp.cls_pw == AUTO else torch.tensor(float(hyp.cls_pw)),
        obj_pw=hyp.obj_pw,
        fl_gamma=hyp.fl_gamma,
        label_smoothing=hyp.label_smoothing,
    )
