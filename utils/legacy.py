"""YOLOv5's checkpoints (v5 to v7, and those of the SPD-Conv authors), whose pickled models are read as plain data.

The classes a file may name come as records without behaviour; any other name is refused, and nothing in it is run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from utils.archive import MAX_DEPTH, MAX_NODES, ContentError, Stub, as_float32, plain_copy
from utils.options import InputError

CONFIG_KEYS = ("nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head")
_CLASSES = {
    "models.yolo": "Model DetectionModel Detect",
    "models.common": (
        "Conv DWConv DWConvTranspose2d Bottleneck BottleneckCSP C3 C3x C3TR C3SPP C3Ghost CrossConv SPP SPPF Focus "
        "space_to_depth Concat Contract Expand GhostConv GhostBottleneck TransformerLayer TransformerBlock"
    ),
    "models.experimental": "CrossConv MixConv2d Sum GhostConv GhostBottleneck",
    **dict.fromkeys(
        ("models.resnet", "models.resnet18_spd", "models.resnet50_spd"),
        "ResNet BasicBlock BottleNeck Focus Conv space_to_depth",
    ),
    "torch": "device",
    "torch.nn.modules.activation": "SiLU ReLU ReLU6 LeakyReLU Hardswish Mish GELU PReLU Sigmoid MultiheadAttention",
    "torch.nn.modules.batchnorm": "BatchNorm2d SyncBatchNorm",
    "torch.nn.modules.container": "Sequential ModuleList",
    "torch.nn.modules.conv": "Conv2d ConvTranspose2d",
    "torch.nn.modules.dropout": "Dropout",
    "torch.nn.modules.linear": "Identity Linear NonDynamicallyQuantizableLinear _LinearWithBias",
    "torch.nn.modules.normalization": "LayerNorm GroupNorm",
    "torch.nn.modules.padding": "ZeroPad2d",
    "torch.nn.modules.pooling": "MaxPool2d AvgPool2d AdaptiveAvgPool2d",
    "torch.nn.modules.upsampling": "Upsample",
    "numpy": "ndarray dtype",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "_codecs": "encode",
    "builtins": "set",
    "__builtin__": "set",
    "argparse": "Namespace",
    "datetime": "datetime date timedelta",
    "pathlib": "Path PosixPath WindowsPath PurePosixPath PureWindowsPath",
    "pathlib._local": "Path PosixPath WindowsPath PurePosixPath PureWindowsPath",
}
INERT = frozenset(f"{module}.{name}" for module, names in _CLASSES.items() for name in names.split())


@dataclass(frozen=True)
class LegacyCheckpoint:
    """A YOLOv5 checkpoint as plain data.

    `state_dict` holds the EMA if the file has one, floats as float32, under the names of YOLOv5's state_dict;
    `config` is the model's YAML.
    """

    config: dict[str, Any]
    names: list[str]
    state_dict: dict[str, Tensor]


def parse_legacy(content: Any, path: Path) -> LegacyCheckpoint:
    """Turn what `read_archive` found in a YOLOv5 checkpoint into plain data.

    Raises:
        InputError: it is no such checkpoint.
    """
    try:
        model = _find_model(content)
        config = _config(model.attributes.get("yaml"))
        return LegacyCheckpoint(
            config=config,
            names=_names(model.attributes.get("names"), config["nc"]),
            state_dict=as_float32(dict(_named_tensors(model)), path.stat().st_size),
        )
    except ContentError as error:
        raise InputError(f"{path}: {error}") from None


def find_state(content: Any) -> dict[str, Tensor]:
    """The tensors of a classifier saved whole or as a state_dict, for one GPU or several; none if it is neither."""
    try:
        found = dict(_named_tensors(content)) if isinstance(content, Stub) else content
    except ContentError:
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        return {}
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def _find_model(content: Any) -> Stub:
    if isinstance(content, dict):
        for key in ("ema", "model"):
            if isinstance(content.get(key), Stub):
                return content[key]
    raise ContentError("no YOLOv5 checkpoint: expected a pickled model under 'ema' or 'model'")


def _config(value: Any) -> dict[str, Any]:
    config = plain_copy(value, "the model's YAML")
    if not isinstance(config, dict) or not config.keys() >= set(CONFIG_KEYS):
        raise ContentError(f"no YOLOv5 detector: expected the model's YAML with the keys {', '.join(CONFIG_KEYS)}")
    return config


def _names(value: Any, classes: Any) -> list[str]:
    """Class names from YOLOv5's list or, since v6.2, its dict of index to name."""
    if isinstance(value, dict):
        value = [value.get(index) for index in range(len(value))]
    if not isinstance(value, list) or len(value) != classes or not all(type(name) is str for name in value):
        raise ContentError("no YOLOv5 detector: expected as many class names as its YAML has classes (nc)")
    return list(value)


def _named_tensors(model: Stub) -> Iterator[tuple[str, Tensor]]:
    """Yield what the module's state_dict would hold, in its order, but `anchor_grid`, which later versions dropped."""
    waiting, budget = [("", model)], MAX_NODES
    while waiting:
        prefix, module = waiting.pop()
        own = _attribute(module, "_parameters") | _attribute(module, "_buffers")
        children = _attribute(module, "_modules")
        transient = _transient(module)
        budget -= 1 + len(own) + len(children) + len(transient)  # a shared module is visited once for each of its names
        if budget < 0 or prefix.count(".") > MAX_DEPTH:
            raise ContentError("damaged: its modules are nested without end")
        dropped = {"anchor_grid", *transient}
        for name, tensor in own.items():
            if type(tensor) is Tensor and name not in dropped:
                yield f"{prefix}{name}", tensor
        waiting += [(f"{prefix}{name}.", child) for name, child in reversed(children.items()) if type(child) is Stub]


def _attribute(module: Stub, name: str) -> dict[str, Any]:
    value = module.attributes.get(name, {})
    if type(value) is not dict:
        raise ContentError(f"damaged: {name} of a {module.name} is a {type(value).__name__}")
    return value


def _transient(module: Stub) -> list[str]:
    """Names of the buffers that state_dict leaves out, from the `set([...])` that the file calls."""
    names = module.attributes.get("_non_persistent_buffers_set")
    arguments = names.arguments if isinstance(names, Stub) else ()
    buffers = arguments[0] if arguments else []
    return [name for name in buffers if type(name) is str] if type(buffers) is list else []
