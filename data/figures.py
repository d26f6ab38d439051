"""The figures of a split that a detector cares about: how many objects, how large, and whether anchors fit them."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations
from utils.anchors import measure
from utils.options import InputError, brief, find_yaml, read_yaml
from utils.plots import SIZE_BANDS, plot_labels

Floats = npt.NDArray[np.float64]
LEAST_SIDE = 2.0  # pixels; of a smaller object a detector sees next to nothing
_COMMONEST = 10  # image sizes that are told one by one


@dataclass(frozen=True)
class Figures:
    """What a split holds; crowd regions are counted apart and enter nothing else.

    Attributes:
        images: images that can be read.
        empty: of those without an object.
        boxes: objects.
        crowd: crowd regions.
        polygons: objects with an outline.
        most: objects of the fullest image.
        classes: objects of each class.
        image_sizes: images of each width x height, the commonest ones.
        different_sizes: number of sizes.
        longer_sides: the least, the median and the greatest longer side of an image.
        shorter_sides: the same of the objects' shorter sides, in pixels of the original.
        bands: share of the boxes in each of COCO's bands of area, in pixels of the original.
        bands_at_size: the same when the image's longer side is `size` pixels.
        tiny: share of the objects whose shorter side is then under LEAST_SIDE pixels.
        recall: share of the objects that some anchor fits then; None without anchors.
        anchors_per_box: number of anchors that fit an object.
    """

    images: int
    empty: int
    boxes: int
    crowd: int
    polygons: int
    most: int
    classes: dict[str, int]
    image_sizes: dict[str, int]
    different_sizes: int
    longer_sides: list[float]
    shorter_sides: list[float]
    bands: dict[str, float]
    bands_at_size: dict[str, float]
    tiny: float
    recall: float | None
    anchors_per_box: float | None


def figures(table: Annotations, size: int, anchors_wh: Floats | None, anchor_t: float) -> Figures:
    """Take a split's figures, for training at `size` pixels with the anchors (A, 2)."""
    plain = ~table.crowd
    wh = table.boxes[plain, 2:]
    seen_wh = table.wh_at(size)
    fit = None if anchors_wh is None else measure(seen_wh[(seen_wh > 0).all(1)], anchors_wh, anchor_t)
    sizes = Counter(map(tuple, table.sizes_wh.tolist()))
    counts = np.bincount(np.repeat(np.arange(len(table)), table.counts)[plain], minlength=len(table))
    names = zip(table.names, np.bincount(table.classes[plain], minlength=len(table.names)).tolist(), strict=True)
    return Figures(
        images=len(table),
        empty=int((counts == 0).sum()),
        boxes=int(plain.sum()),
        crowd=int(table.crowd.sum()),
        polygons=int((np.diff(table.polygon_starts)[plain] > 0).sum()),
        most=int(counts.max()),
        classes=dict(names),
        image_sizes={f"{width}x{height}": count for (width, height), count in sizes.most_common(_COMMONEST)},
        different_sizes=len(sizes),
        longer_sides=_spread(table.sizes_wh.max(1)),
        shorter_sides=_spread(wh.min(1)),
        bands=_bands(wh),
        bands_at_size=_bands(seen_wh),
        tiny=float((seen_wh.min(1) < LEAST_SIDE).mean()) if len(wh) else 0.0,
        recall=fit.recall if fit else None,
        anchors_per_box=fit.anchors_per_box if fit else None,
    )


def _spread(values: npt.NDArray[Any]) -> list[float]:
    """The least, the median and the greatest of some values, of which there may be none."""
    return [float(value) for value in np.quantile(values, (0, 0.5, 1))] if len(values) else []


def _bands(wh: Floats) -> dict[str, float]:
    """The share of boxes (M, 2) in each of COCO's bands."""
    sides = np.sqrt(wh.prod(1))
    return {
        name: float(((sides >= low) & (sides < high)).mean()) if len(sides) else 0.0
        for name, (low, high) in SIZE_BANDS.items()
    }


def read_anchors(cfg: str) -> Floats | None:
    """Read the anchors (A, 2) in pixels of a model YAML; None if it has AutoAnchor find them.

    Raises:
        InputError: there is no such YAML, or it has no anchors.
    """
    path = find_yaml(cfg, "models", "models/hub")
    given = read_yaml(path).get("anchors")
    if isinstance(given, int):
        return None
    try:
        anchors = np.concatenate([np.array(scale, np.float64).reshape(-1, 2) for scale in given or ()])
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: anchors: expected w, h, w, h, ... for each scale, found {brief(given)}") from error
    if not (anchors > 0).all():
        raise InputError(f"{path}: anchors: expected sides in pixels, found {brief(given)}")
    return anchors


def draw_labels(table: Annotations, path: Path) -> None:
    """Write the picture of a split's objects: their classes, shapes, places and sizes."""
    plain = ~table.crowd
    sizes = np.repeat(table.sizes_wh, table.counts, 0)[plain]
    corner, wh = table.boxes[plain, :2], table.boxes[plain, 2:]
    xywhn = np.hstack(((corner + wh / 2) / sizes, wh / sizes))
    plot_labels(table.classes[plain], xywhn, table.names, path, wh=wh)
