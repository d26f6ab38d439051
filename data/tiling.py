"""Data sets of large images: whole for a validation in tiles."""

from dataclasses import replace

import torch

from data.dataset import DetectionDataset, Item, make_item
from utils.boxes import Letterbox


class WholeImages(DetectionDataset):
    """Validation items that carry their whole images, for tiles to be cut from."""

    def _validation_item(self, index: int, geometry: Letterbox) -> Item:
        image = self._files.read_whole(index)
        item = make_item(self._letterboxed(index, geometry, image), index, geometry)
        return replace(item, whole=torch.from_numpy(image))
