"""Models for torch.hub.load and for `import hubconf`.

    model = torch.hub.load("path/to/yolov5-spd", "custom", path="best.pt", source="local")
    results = model(["a.jpg", array], size=640)

This project's packages have names that a program may use as well, so they are loaded aside: its own `utils`, `models`
and `data` stay what they are, whether it imports them before or after.
"""

import collections.abc
import contextlib
import functools
import importlib
import pathlib
import sys
import types
import typing

if typing.TYPE_CHECKING:  # torch.hub lists every callable without an underscore as a model
    from models.yolo import Model
    from utils.hub import Device, HubModel

dependencies = ["torch", "torchvision", "ultralytics", "cv2", "yaml", "PIL"]  # torch.hub looks whether they are there

_ROOT = pathlib.Path(__file__).resolve().parent
_PACKAGES = ("models", "data", "utils")


@contextlib.contextmanager
def _own_packages() -> collections.abc.Iterator[None]:
    """Let imports in the block find this project's packages, and leave sys.modules and sys.path as they were.

    A process that works with this project's packages already goes on with them.
    """
    before = _loaded()
    tops = [module for name, module in before.items() if name in _PACKAGES]
    ours = bool(tops) and all(_ROOT in pathlib.Path(module.__file__ or "").resolve().parents for module in tops)
    if not ours:
        _forget(before)
    sys.path.insert(0, str(_ROOT))
    try:
        yield
    finally:
        sys.path.remove(str(_ROOT))
        if not ours:
            _forget(_loaded())
            sys.modules.update(before)


def _loaded() -> dict[str, types.ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in _PACKAGES}


def _forget(names: collections.abc.Iterable[str]) -> None:
    for name in names:
        del sys.modules[name]


@functools.cache
def _hub() -> types.ModuleType:
    with _own_packages():
        return importlib.import_module("utils.hub")


def _entry(name: str) -> "collections.abc.Callable[..., HubModel | Model]":
    """Make the function that builds the model of `name`."""

    def build(
        pretrained: bool = False,
        channels: int = 3,
        classes: int = 80,
        autoshape: bool = True,
        _verbose: bool = True,
        device: "Device" = None,
    ) -> "HubModel | Model":
        return _hub().create(
            name,
            pretrained=pretrained,
            channels=channels,
            classes=classes,
            autoshape=autoshape,
            verbose=_verbose,
            device=device,
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""Build {name}.

    Args:
        pretrained: take the weights of {name.replace("_", "-")}.pt, a file in the current folder or beside hubconf.py;
            otherwise they are random.
        channels: of the images; other than 3 give the bare network.
        classes: their number; with another one than the file's, the last layer starts anew.
        autoshape: make the model callable on images of any form; False gives the bare network, for training.
        _verbose: warn of weights that are not trained.
        device: "cpu", 0, "cuda:1" or a torch.device; a GPU if there is one when None.
    """
    return build


def custom(
    path: str | pathlib.Path,
    autoshape: bool = True,
    _verbose: bool = True,  # YOLOv5's; there is nothing to silence
    device: "Device" = None,
) -> "HubModel | Model":
    """Load a checkpoint of this project or of YOLOv5, the other arguments being those of the models by name."""
    return _hub().custom(path, autoshape=autoshape, device=device)


yolov5n = _entry("yolov5n")
yolov5s = _entry("yolov5s")
yolov5m = _entry("yolov5m")
yolov5l = _entry("yolov5l")
yolov5x = _entry("yolov5x")
yolov5_spd_n = _entry("yolov5_spd_n")
yolov5_spd_s = _entry("yolov5_spd_s")
yolov5_spd_m = _entry("yolov5_spd_m")
yolov5_spd_l = _entry("yolov5_spd_l")
