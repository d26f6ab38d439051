"""What a model finds in a program's images, in YOLOv5's forms: tensors, tables, texts and pictures."""

import importlib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from PIL import ImageShow
from torch import Tensor

from data.images import swap_red_and_blue
from utils.boxes import xyxy_to_xywh
from utils.drawing import draw_detections, save_image
from utils.options import InputError
from utils.report import folder_names
from utils.runs import make_run_folder
from utils.upstream import save_one_box

LOGGER = logging.getLogger("yolov5-spd")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
CENTRES = ("xcenter", "ycenter", "width", "height")
SAVE_DIR = "runs/detect/exp"
STAGES = ("preprocess", "inference", "nms")  # as `engine.Predictor` times them

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Tables:
    """A pandas.DataFrame for each image, a row for each detection, in each format of boxes."""

    xyxy: list[Any]
    xywh: list[Any]
    xyxyn: list[Any]
    xywhn: list[Any]


class Results:
    """Detections of a list of images.

    Attributes:
        ims: (H, W, 3) RGB of each image; after `render` with its boxes.
        pred: (n, 6) of each image on the CPU: x1, y1, x2, y2 in its pixels, confidence, class; most confident first.
        files: a file name for each image, .jpg, each another.
        names: of the classes, by number.
        t: milliseconds an image for preprocessing, inference and NMS.
        s: shape (B, 3, H, W) of what the network was given; the largest sides where images differ.
    """

    def __init__(
        self,
        ims: list[Image],
        pred: list[Tensor],
        files: list[str],
        names: dict[int, str],
        *,
        t: tuple[float, ...],
        s: tuple[int, int, int, int],
    ) -> None:
        assert len(ims) == len(pred) == len(files)
        self.ims = ims
        self.pred = pred
        self.files = files
        self.names = names
        self.t = t
        self.s = s
        self._bare = list(ims)

    def __len__(self) -> int:
        return len(self.pred)

    def __str__(self) -> str:
        lines = [
            f"image {number}/{self.n} {file}: {image.shape[0]}x{image.shape[1]} {self._counted(rows)}"
            for number, (file, image, rows) in enumerate(zip(self.files, self.ims, self.pred, strict=True), 1)
        ]
        times = ", ".join(f"{value:.1f} ms {name}" for name, value in zip(STAGES, self.t, strict=True))
        return "\n".join([*lines, f"speed of an image: {times} at {' x '.join(map(str, self.s))}"])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} images: {sum(map(len, self.pred))} detections>"

    @property
    def n(self) -> int:
        """How many images."""
        return len(self)

    @property
    def xyxy(self) -> list[Tensor]:
        """(n, 6) of each image: corners in pixels, confidence, class."""
        return self.pred

    @property
    def xywh(self) -> list[Tensor]:
        """(n, 6) of each image: centre and size in pixels, confidence, class."""
        return [torch.cat((xyxy_to_xywh(rows[:, :4]), rows[:, 4:]), 1) for rows in self.pred]

    @property
    def xyxyn(self) -> list[Tensor]:
        """`xyxy` divided by the image's width and height."""
        return self._divided(self.xyxy)

    @property
    def xywhn(self) -> list[Tensor]:
        """`xywh` divided by the image's width and height."""
        return self._divided(self.xywh)

    def pandas(self) -> Tables:
        """Make tables with YOLOv5's columns.

        Raises:
            InputError: pandas is not installed.
        """
        frame = _optional("pandas", "pandas()").DataFrame
        return Tables(
            *(
                [self._table(frame, rows, columns) for rows in boxes]
                for boxes, columns in (
                    (self.xyxy, CORNERS),
                    (self.xywh, CENTRES),
                    (self.xyxyn, CORNERS),
                    (self.xywhn, CENTRES),
                )
            )
        )

    def to_supervision(self) -> list[Any]:
        """Make a supervision.Detections for each image.

        Raises:
            InputError: supervision is not installed.
        """
        build = _optional("supervision", "to_supervision()").Detections
        return [
            build(
                xyxy=rows[:, :4].numpy(),
                confidence=rows[:, 4].numpy(),
                class_id=rows[:, 5].numpy().astype(int),
                data={"class_name": np.array(self._labels(rows), dtype=str)},
            )
            for rows in self.pred
        ]

    def tolist(self) -> list["Results"]:
        """Results of one image each."""
        return [
            Results([image], [rows], [file], self.names, t=self.t, s=self.s)
            for image, rows, file in zip(self._bare, self.pred, self.files, strict=True)
        ]

    def print(self) -> None:
        """Write a line for each image to stdout, and the speed."""
        sys.stdout.write(f"{self}\n")

    def render(self, labels: bool = True) -> list[Image]:
        """Draw the boxes, and with `labels` their names and confidences; the pictures are RGB, and in `ims`, too."""
        names = list(self.names.values())
        self.ims = [
            swap_red_and_blue(draw_detections(swap_red_and_blue(image), rows, names, hide_labels=not labels))
            for image, rows in zip(self._bare, self.pred, strict=True)
        ]
        return self.ims

    def show(self, labels: bool = True) -> None:
        """Open the drawn pictures in the desktop's viewer.

        Raises:
            InputError: there is none.
        """
        for picture, file in zip(self.render(labels), self.files, strict=True):
            if not ImageShow.show(PIL.Image.fromarray(picture), title=file):
                raise InputError("show(): this machine has no viewer for pictures; use save() or render()")

    def save(self, labels: bool = True, save_dir: str | Path = SAVE_DIR, exist_ok: bool = False) -> Path:
        """Write the drawn pictures into a folder, or with a number behind its name where it exists; returns it."""
        folder = _make_folder(save_dir, exist_ok)
        for picture, file in zip(self.render(labels), self.files, strict=True):
            save_image(swap_red_and_blue(picture), folder / file)
        LOGGER.info("%d pictures saved in %s", len(self), folder)
        return folder

    def crop(self, save: bool = True, save_dir: str | Path = SAVE_DIR, exist_ok: bool = False) -> list[dict[str, Any]]:
        """Cut out each detection, with a margin; files go to `save_dir`/crops/CLASS.

        Returns:
            For each detection of all images box (4 coordinates in pixels), conf, cls, label (a text) and im (RGB).
        """
        folder = _make_folder(save_dir, exist_ok) / "crops" if save else Path()
        below = folder_names(list(self.names.values()))
        crops = []
        for image, rows, file in zip(self._bare, self.pred, self.files, strict=True):
            bgr = swap_red_and_blue(image)
            for row in rows:
                label = int(row[5])
                cut = save_one_box(row[:4], bgr, file=folder / below[label] / file, BGR=True, save=save)
                text = f"{self.names[label]} {float(row[4]):.2f}"
                im = swap_red_and_blue(cut)
                crops.append({"box": list(row[:4]), "conf": row[4], "cls": row[5], "label": text, "im": im})
        return crops

    def _labels(self, rows: Tensor) -> list[str]:
        """The class name of each detection."""
        return [self.names[label] for label in rows[:, 5].int().tolist()]

    def _counted(self, rows: Tensor) -> str:
        counts = Counter(self._labels(rows[rows[:, 5].argsort()]))
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing found"

    def _divided(self, boxes: list[Tensor]) -> list[Tensor]:
        """Boxes in shares of their image; confidence and class as they are."""
        return [
            rows / rows.new_tensor((image.shape[1], image.shape[0]) * 2 + (1, 1))
            for rows, image in zip(boxes, self.ims, strict=True)
        ]

    def _table(self, frame: Callable[..., Any], rows: Tensor, columns: Sequence[str]) -> Any:
        values = (*rows[:, :5].T.numpy(), rows[:, 5].int().numpy(), self._labels(rows))
        return frame(dict(zip((*columns, "confidence", "class", "name"), values, strict=True)))


def _make_folder(save_dir: str | Path, exist_ok: bool) -> Path:
    path = Path(save_dir)
    return make_run_folder(str(path.parent), path.name, exist_ok=exist_ok)


def _optional(package: str, caller: str) -> ModuleType:
    """Import a package that only one method needs."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise InputError(f"{caller} needs the package {package}: pip install {package}") from None
