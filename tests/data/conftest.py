"""Annotations of small pictures, made by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.annotations import Annotations


@pytest.fixture
def make_annotations(tmp_path) -> Callable[..., Annotations]:
    """A function that writes images and makes their table, by hand."""

    def make(
        images: Sequence[np.ndarray],
        boxes_xyxy: Sequence[np.ndarray],
        classes: Sequence[Sequence[int]],
        *,
        crowd: Sequence[bool] | None = None,
        polygons: Sequence[np.ndarray] | None = None,
    ) -> Annotations:
        paths = [Path(tmp_path) / f"picture {number:03}.png" for number in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            assert cv2.imwrite(str(path), image)
        xyxy = np.concatenate([np.asarray(boxes, float).reshape(-1, 4) for boxes in boxes_xyxy])
        wh = xyxy[:, 2:] - xyxy[:, :2]
        lengths = [len(points) for points in polygons] if polygons else [0] * len(xyxy)
        return Annotations(
            names=[str(number) for number in range(8)],
            paths=paths,
            sizes_wh=np.array([image.shape[1::-1] for image in images], np.int32),
            image_ids=np.arange(len(images)),
            category_ids=np.arange(8),
            starts=np.cumsum([0, *(len(boxes) for boxes in boxes_xyxy)]),
            classes=np.concatenate([np.asarray(group, np.int64) for group in classes]),
            boxes=np.concatenate((xyxy[:, :2], wh), 1),
            areas=wh.prod(1),
            crowd=np.zeros(len(xyxy), bool) if crowd is None else np.array(crowd),
            polygons=np.concatenate(polygons).astype(np.float32) if polygons else np.zeros((0, 2), np.float32),
            polygon_starts=np.cumsum([0, *lengths]),
            problems=[],
        )

    return make
