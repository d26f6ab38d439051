"""A model that is called on images in any form and gives their detections: what `hubconf.py` hands out."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from data.dataset import Item, letterboxed_item, unlabelled_item
from data.images import swap_red_and_blue
from data.inputs import ImageInput, Picture, read_picture
from data.loader import collate
from models.yolo import Model
from utils.boxes import fit
from utils.checkpoint import read_weights, transfer
from utils.engine import NmsSettings, Predictor
from utils.options import ROOT, InputError, find_yaml, read_yaml
from utils.report import unique_stems
from utils.results import STAGES, Results
from utils.runs import build_from_weights, check_image_size, open_model
from utils.upstream import select_device

LOGGER = logging.getLogger("yolov5-spd")
BATCH = 16  # images that go through the network at once, at most

Device = str | int | torch.device | None


class HubModel(nn.Module):
    """A detector with its preprocessing and NMS, called on images.

    What is set on it counts from the next call on.

    Attributes:
        conf: least confidence of a detection.
        iou: overlap above which NMS drops the less confident of two boxes.
        classes: the classes kept, by number; None keeps all.
        max_det: most detections of an image.
        agnostic: suppress across classes.
        multi_label: a box gives a detection for each class over `conf`, else for its best class only.
        amp: float16 on CUDA, bfloat16 on CPUs.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.conf = 0.25
        self.iou = 0.45
        self.classes: Sequence[int] | int | None = None
        self.max_det = 1000
        self.agnostic = False
        self.multi_label = False
        self.amp = False
        self._ready: Predictor | None = None
        self._state: tuple[tuple[int, int], ...] = ()  # of the weights that it was made of
        self.eval()
        self._predictor()  # now, since torch.fx, which folds, disturbs other threads that run a model

    @property
    def names(self) -> dict[int, str]:
        """The classes' names by number."""
        return dict(enumerate(self.model.names))

    @property
    def stride(self) -> int:
        """What the sides of a batch must be multiples of."""
        return self.model.max_stride

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.head.anchors.device

    def forward(
        self,
        images: ImageInput | Sequence[ImageInput],
        size: int | Sequence[int] = 640,
        augment: bool = False,
    ) -> Results:
        """Detect in an image, or in each of a list that may mix their forms.

        Args:
            images: as `data.inputs.read_picture` takes them. A tensor (B, 3, H, W) is a batch: its sides are multiples
                of `stride`, nothing is scaled, and boxes are in its pixels. Floats are rounded to 8 bits.
            size: pixels of the longer side that an image is letterboxed to; of two, the larger.
            augment: test-time augmentation, scaled and mirrored views.

        Raises:
            InputError: an image cannot be read, or a setting is out of its range.
        """
        predictor = self._predictor()
        predictor.settings, predictor.half, predictor.augment = self._settings(), self.amp, augment
        predictor.watch.seconds.clear()
        with predictor.watch.measure("preprocess"):
            pictures, items = self._prepare(images, size)
        pred = _detect(predictor, items)
        seconds = [predictor.watch.seconds.get(stage, 0.0) / max(len(items), 1) for stage in STAGES]
        height, width = (max((item.image.shape[side] for item in items), default=0) for side in (1, 2))
        files = unique_stems(Path(picture.name or f"image{place}") for place, picture in enumerate(pictures))
        return Results(
            [picture.image for picture in pictures],
            pred,
            [f"{stem}.jpg" for stem in files],
            self.names,
            t=tuple(1e3 * value for value in seconds),
            s=(len(items), 3, height, width),
        )

    def half(self) -> "HubModel":
        """Say in YOLOv5's way that `amp` is wanted; the weights keep their precision."""
        self.amp = True
        return self

    def train(self, mode: bool = True) -> "HubModel":
        """Choose between training and evaluation; detection is in evaluation either way."""
        self._ready = None  # weights may change
        return super().train(mode)

    def _predictor(self) -> Predictor:
        """The copy that is fused for speed, made again when weights may have changed or moved."""
        state = tuple(_state(values) for values in (*self.model.parameters(), *self.model.buffers()))
        if self._ready is None or self.training or state != self._state:
            self._ready, self._state = Predictor(self.model, self.device, settings=NmsSettings()), state
        return self._ready

    def _settings(self) -> NmsSettings:
        for name, least, most in (("conf", 0, 1), ("iou", 0, 1), ("max_det", 1, math.inf)):
            value = getattr(self, name)
            if not least <= value <= most:
                limits = f"{least} or more" if most == math.inf else f"{least} to {most}"
                raise InputError(f"model.{name} = {value!r}: expected {limits}")
        classes = self.classes
        if classes is not None:
            classes = [classes] if isinstance(classes, int) else [int(label) for label in classes]
        if any(label not in self.names for label in classes or []):
            raise InputError(f"model.classes = {self.classes!r}: the model has classes 0 to {len(self.names) - 1}")
        return NmsSettings(self.conf, self.iou, self.max_det, classes, self.agnostic, self.multi_label)

    def _prepare(
        self, images: ImageInput | Sequence[ImageInput], size: int | Sequence[int]
    ) -> tuple[list[Picture], list[Item]]:
        """Read all images and fit them to the network."""
        if isinstance(images, Tensor) and images.ndim == 4:
            return self._prepare_batch(images)
        given = [images] if isinstance(images, str) or not isinstance(images, Sequence) else images
        pictures = [read_picture(image) for image in given]
        side = check_image_size(size if isinstance(size, int) else max(size), self.stride)
        return pictures, [letterboxed_item(swap_red_and_blue(one.image), side, self.stride) for one in pictures]

    def _prepare_batch(self, images: Tensor) -> tuple[list[Picture], list[Item]]:
        """Take a batch (B, 3, H, W), unscaled."""
        width_height = (images.shape[3], images.shape[2])
        if images.shape[1] != 3 or any(side % self.stride for side in width_height):
            raise InputError(
                f"a batch of shape {tuple(images.shape)}: expected 3 channels and sides that are multiples of"
                f" {self.stride}; as a list of images they may have any size"
            )
        pictures = [read_picture(image) for image in images]
        unscaled = fit(width_height, width_height)
        return pictures, [unlabelled_item(swap_red_and_blue(one.image), unscaled) for one in pictures]


def _state(values: Tensor) -> tuple[int, int]:
    """What changes with a tensor's values: where they are, and how often they were written."""
    return values.data_ptr(), 0 if values.is_inference() else values._version  # inference mode does not count


def _detect(predictor: Predictor, items: Sequence[Item]) -> list[Tensor]:
    """Detections (n, 6) of each item; items of one shape go through the network together."""
    places: dict[torch.Size, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.image.shape, []).append(place)
    found = [torch.empty(0, 6)] * len(items)
    for alike in places.values():
        for batch in (alike[start : start + BATCH] for start in range(0, len(alike), BATCH)):
            for place, rows in zip(batch, predictor(collate([items[i] for i in batch])).original, strict=True):
                found[place] = rows.clone()  # a clone can be changed, which a tensor of inference mode cannot
    return found


def create(
    name: str,
    *,
    pretrained: bool = False,
    channels: int = 3,
    classes: int = 80,
    autoshape: bool = True,
    verbose: bool = True,
    device: Device = None,
) -> HubModel | Model:
    """Make the model of `NAME.yaml`.

    Args:
        name: yolov5n or yolov5_spd_n, for example.
        pretrained: take the weights of `NAME.pt` in the current folder or the project's; those of other shapes than
            `channels` and `classes` ask for start anew. Without it all weights are random.
        channels: of the images.
        classes: their number.
        autoshape: make it callable on images; without it, or with other than 3 channels, the bare network for training.
        verbose: warn of weights that are not trained.
        device: "cpu", 0, "cuda:1" or a torch.device; None chooses.

    Raises:
        InputError: there are no weights, no such device, or an argument is out of its range.
    """
    name = name.replace("_", "-")
    target = _as_device(device)
    size = {"ch": channels, "nc": classes}
    if pretrained:
        model, note = _with_weights(_find_weights(name), size)
    else:
        model = Model(read_yaml(find_yaml(f"{name}.yaml", "models")) | size, source=f"{name}.yaml")
        note = "random weights, nothing is learnt yet; custom(path) loads a trained model"
    if note and verbose:
        LOGGER.warning("%s: %s", name, note)
    return _finished(model, target, autoshape)


def custom(path: str | Path, *, autoshape: bool = True, device: Device = None) -> HubModel | Model:
    """Load a checkpoint of this project or of YOLOv5; the arguments are those of `create`.

    Raises:
        InputError: it cannot be read, or there is no such device.
    """
    target = _as_device(device)
    return _finished(open_model(str(Path(path).expanduser())), target, autoshape)


def _finished(model: Model, device: torch.device, autoshape: bool) -> HubModel | Model:
    """Move a model, and make it callable on images if that is wanted and it reads such."""
    model = model.to(device)
    channels = model.config.get("ch", 3)
    if autoshape and channels != 3:
        LOGGER.warning("images have 3 channels, the model reads %s: it is left to be called on tensors", channels)
    return HubModel(model) if autoshape and channels == 3 else model


def _as_device(device: Device) -> torch.device:
    return select_device("" if device is None else str(device))


def _find_weights(name: str) -> Path:
    file = f"{name}.pt"
    for folder in (Path.cwd(), ROOT):
        if (folder / file).is_file():
            return folder / file
    if "spd" in name:
        advice = f"no weights are published for it: train with --cfg {name}.yaml and load the result with custom(path)"
    else:
        advice = "get it from https://github.com/ultralytics/yolov5/releases, or load another with custom(path)"
    raise InputError(f"pretrained=True: no {file} in {Path.cwd()} or {ROOT}; {advice}")


def _with_weights(path: Path, size: Mapping[str, int]) -> tuple[Model, str]:
    """A checkpoint's model with so many channels and classes, and what of it is not trained."""
    weights = read_weights(path)
    if size == {"ch": weights.config.get("ch", 3), "nc": len(weights.names)}:
        return build_from_weights(weights), ""
    names = weights.names if len(weights.names) == size["nc"] else None
    model = Model({**weights.config, **size}, names=names, source=str(path))
    return model, str(transfer(model, weights))
