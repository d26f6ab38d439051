"""AutoAnchor: how well a model's anchors fit the boxes of a data set, and better ones where they do not.

A box can be learnt if some anchor has sides within a factor `anchor_t` of its own. That is a distance between the
logarithms of sides, so clusters are sought there.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
GOOD_ENOUGH = 0.98  # best possible recall above which anchors are kept
MOST_CLUSTERED = 20_000  # boxes; more change nothing and take long
MIN_SIDE = 2.0  # pixels; smaller boxes do not shape anchors


@dataclass(frozen=True)
class AnchorFit:
    """Recall that the anchors allow at best, and the mean number of anchors that fit a box."""

    recall: float
    anchors_per_box: float

    def __str__(self) -> str:
        return f"best possible recall {self.recall:.4f}, {self.anchors_per_box:.2f} anchors fit a box"


def measure(boxes_wh: Floats, anchors_wh: Floats, anchor_t: float) -> AnchorFit:
    """Measure how anchors (A, 2) fit boxes (M, 2), both in pixels of the training image."""
    if not len(boxes_wh):
        return AnchorFit(1.0, 0.0)
    distance = np.abs(np.log(boxes_wh)[:, None] - np.log(anchors_wh)[None]).max(2)  # (M, A)
    fits = distance < np.log(anchor_t)
    return AnchorFit(float(fits.any(1).mean()), float(fits.sum(1).mean()))


def cluster(boxes_wh: Floats, count: int, seed: int = 0) -> Floats:
    """Cluster boxes (M, 2) into `count` anchors, sorted by area."""
    points = np.log(boxes_wh[(boxes_wh >= MIN_SIDE).all(1)]).astype(np.float32)
    assert len(points) >= count, "more anchors than boxes"
    if len(points) > MOST_CLUSTERED:
        points = np.random.default_rng(seed).choice(points, MOST_CLUSTERED, replace=False)
    cv2.setRNGSeed(seed)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 100, 1e-4)
    _, _, centres = cv2.kmeans(points, count, np.empty(0), stop, 10, cv2.KMEANS_PP_CENTERS)
    anchors = np.exp(centres.astype(np.float64))
    return anchors[anchors.prod(1).argsort()]


def fit_anchors(
    boxes_wh: Floats, anchors: Floats, anchor_t: float, *, always: bool = False
) -> tuple[Floats, AnchorFit, AnchorFit]:
    """Return anchors (scales, A, 2) for the boxes: the given ones if they are good enough or new ones are no better.

    Args:
        boxes_wh: (M, 2) pixels in training images.
        anchors: (scales, A, 2) pixels.
        anchor_t: largest ratio of a side to the anchor's.
        always: take the new ones, for a model that comes without.

    Returns:
        The anchors, and how the given and the returned ones fit.
    """
    flat = anchors.reshape(-1, 2)
    before = measure(boxes_wh, flat, anchor_t)
    usable = int((boxes_wh >= MIN_SIDE).all(1).sum())
    if usable < len(flat) or (before.recall > GOOD_ENOUGH and not always):
        return anchors, before, before
    found = cluster(boxes_wh, len(flat))
    after = measure(boxes_wh, found, anchor_t)
    if after.recall <= before.recall and not always:
        return anchors, before, before
    return found.reshape(anchors.shape), before, after
