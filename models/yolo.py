"""Detectors from YAML: the registry of layers, the builder, the model; as a script, a model's rows and costs.

    python models/yolo.py --cfg yolov5-spd-s.yaml --profile

A YAML row is [from, number, module, args]. `LAYERS` says which class a name builds and how channels go through it, so a
new layer is one entry there. Nothing in a YAML is evaluated: arguments are plain values.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, Python looks for modules beside this file: look one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models import blocks
from models.head import Detect
from models.network import Network
from utils.options import InputError, brief, find_yaml, read_yaml, refuse_unknown

Config = dict[str, Any]
CONFIG_KEYS = (
    "nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head", "ch", "activation", "channel_multiple",
)  # fmt: skip
_VALUES: dict[str, tuple[Any, float, float, str]] = {  # kinds, least, most, and how to say it
    "nc": (int, 1, 100_000, "a number of classes"),
    "ch": (int, 1, 1024, "a number of channels"),
    "channel_multiple": (int, 1, 1024, "a number of channels"),
    "depth_multiple": (int | float, 0.01, 100, "a factor"),
    "width_multiple": (int | float, 0.001, 100, "a factor"),
}
LITERALS = {"None": None, "True": True, "False": False}  # YAML reads Python's spelling of these as text


@dataclass(frozen=True)
class Row:
    """One row on its way to a layer: channels of its inputs, its arguments, and what scales them."""

    inputs: list[int]
    args: list[Any]
    repeats: int
    width: float
    channel_multiple: int

    def scaled(self, channels: float) -> int:
        """Channels times the model's width, rounded up to the channel multiple."""
        return math.ceil(channels * self.width / self.channel_multiple) * self.channel_multiple


# A rule turns a row into the constructor's arguments and the channels that come out.
Rule = Callable[[Row], tuple[list[Any], int]]


def _convolution(row: Row) -> tuple[list[Any], int]:
    channels = row.scaled(row.args[0])
    return [row.inputs[0], channels, *row.args[1:]], channels


def _repeated(row: Row) -> tuple[list[Any], int]:
    args, channels = _convolution(row)
    return [*args[:2], row.repeats, *args[2:]], channels


def _unchanged(row: Row) -> tuple[list[Any], int]:
    return row.args, row.inputs[0]


def _normalisation(row: Row) -> tuple[list[Any], int]:
    return [row.inputs[0]], row.inputs[0]


def _concatenation(row: Row) -> tuple[list[Any], int]:
    return row.args, sum(row.inputs)


def _space_to_depth(row: Row) -> tuple[list[Any], int]:
    scale = row.args[0] if row.args else 2
    return [scale], row.inputs[0] * scale**2


def _authors_space_to_depth(row: Row) -> tuple[list[Any], int]:
    return [2], row.inputs[0] * 4  # their argument is a dimension that their layer never read


def _detection(row: Row) -> tuple[list[Any], int]:
    anchors = row.args[1]
    if len(anchors) != len(row.inputs):
        raise ValueError(f"anchors for {len(anchors)} scales, but {len(row.inputs)} inputs")
    return [*row.args, row.inputs], 0


@dataclass(frozen=True)
class Layer:
    """What a name in a YAML builds, and how it differs from most.

    A layer that `repeats` takes the row's number as an argument, others are put in sequence; one that `joins` is called
    on the list of its inputs, others on their only one.
    """

    build: Callable[..., nn.Module]
    rule: Rule
    repeats: bool = False
    joins: bool = False


LAYERS: dict[str, Layer] = {
    "Conv": Layer(blocks.Conv, _convolution),
    "DWConv": Layer(blocks.DWConv, _convolution),
    "Focus": Layer(blocks.Focus, _convolution),
    "SPDConv": Layer(blocks.SPDConv, _convolution),
    "SPD": Layer(blocks.SPD, _space_to_depth),
    "space_to_depth": Layer(blocks.SPD, _authors_space_to_depth),
    "Bottleneck": Layer(blocks.Bottleneck, _convolution),
    "CrossConv": Layer(blocks.CrossConv, _convolution),
    "GhostConv": Layer(blocks.GhostConv, _convolution),
    "GhostBottleneck": Layer(blocks.GhostBottleneck, _convolution),
    "C3": Layer(blocks.C3, _repeated, repeats=True),
    "C3x": Layer(blocks.C3x, _repeated, repeats=True),
    "C3Ghost": Layer(blocks.C3Ghost, _repeated, repeats=True),
    "SPP": Layer(blocks.SPP, _convolution),
    "SPPF": Layer(blocks.SPPF, _convolution),
    "Concat": Layer(blocks.Concat, _concatenation, joins=True),
    "nn.Upsample": Layer(nn.Upsample, _unchanged),
    "nn.MaxPool2d": Layer(nn.MaxPool2d, _unchanged),
    "nn.ZeroPad2d": Layer(nn.ZeroPad2d, _unchanged),
    "nn.BatchNorm2d": Layer(nn.BatchNorm2d, _normalisation),
    "nn.ConvTranspose2d": Layer(nn.ConvTranspose2d, _convolution),
    "Detect": Layer(Detect, _detection, joins=True),
}


@dataclass(frozen=True)
class Step:
    """How a row is run: whose outputs it takes (-1 is the image), and which nobody needs after it."""

    inputs: tuple[int, ...]
    joins: bool
    releases: tuple[int, ...]


class Model(Network):
    """A detector built from a YAML; `model` holds its rows, the last of them `Detect`.

    Called on images (B, ch, H, W) in 0..1, whose sides `max_stride` divides, it returns raw maps
    [(B, anchors, ny, nx, 5 + nc)] in training and in evaluation alike; `decode` turns them into boxes.
    """

    def __init__(self, config: Config, *, names: Sequence[str] | None = None, source: str = "model") -> None:
        """Build the network.

        Args:
            config: the parsed YAML; `names`, when given, decides its `nc`.
            names: the class names; "0", "1", ... when absent.
            source: what to call the YAML in messages.

        Raises:
            InputError: the YAML lacks a key, names an unknown layer, or its rows do not fit together.
        """
        super().__init__()
        refuse_unknown(config, CONFIG_KEYS, source)
        _check_values(config, source)
        _check_forms(config, source)
        self.config = copy.deepcopy(config)
        if names is not None:
            self.config["nc"] = len(names)
        self.names = list(names) if names is not None else [str(i) for i in range(self.config.get("nc", 80))]
        layers, self.steps = _build_rows(self.config, source)
        self.model = nn.Sequential(*layers)
        self.head.set_strides(self._measure_strides(source))

    @property
    def head(self) -> Detect:
        """The last row."""
        head = self.model[-1]
        assert isinstance(head, Detect)
        return head

    @property
    def max_stride(self) -> int:
        """What an image's sides must be multiples of: the product of all that halves it, 32 at least."""
        return math.lcm(32, *self.head.strides)

    def forward(self, images: Tensor, observe: Callable[[int, nn.Module, Any], None] | None = None) -> list[Tensor]:
        """(B, ch, H, W) to raw maps [(B, anchors, ny, nx, 5 + nc)]; `observe` sees each row before it runs."""
        if self.folded is not None and observe is None:
            return self.folded[0](images)
        outputs: dict[int, Any] = {-1: images}
        for i, (layer, step) in enumerate(zip(self.model, self.steps, strict=True)):
            taken = [outputs[j] for j in step.inputs]
            given = taken if step.joins else taken[0]
            if observe is not None:
                observe(i, layer, given)
            outputs[i] = layer(given)
            for j in step.releases:
                del outputs[j]
        return outputs[len(self.model) - 1]

    def decode(self, raw: list[Tensor]) -> Tensor:
        """Raw maps to (B, N, 5 + nc): x, y, w, h in pixels, objectness, class scores in 0..1."""
        return self.head.decode(raw)

    def decode_above(self, raw: list[Tensor], conf: float) -> list[Tensor]:
        """What `decode` gives of each image with an objectness of `conf` or more: (n, 5 + nc)."""
        return self.head.decode_above(raw, conf)

    def shapes_only(self, size: int, observe: Callable[[int, nn.Module, Any], None] | None = None) -> list[Tensor]:
        """Run on an image of `size` px without arithmetic (meta tensors): raw maps that have shapes and no values."""
        weights = {key: value.to("meta") for key, value in self.state_dict().items()}
        images = torch.empty(1, int(self.config.get("ch", 3)), size, size, device="meta")
        training = self.training
        with torch.no_grad():
            raw: list[Tensor] = functional_call(self.eval(), weights, (images, observe))
        self.train(training)
        return raw

    def _measure_strides(self, source: str) -> list[int]:
        odd_scales = {m.scale for m in self.modules() if isinstance(m, blocks.SPD)} - {2}
        size = 768 * math.prod(odd_scales)  # halves eight times, and divides by 3 once
        reached = 0

        def note(i: int, *_: Any) -> None:
            nonlocal reached
            reached = i

        try:
            raw = self.shapes_only(size, note)
        except (RuntimeError, AssertionError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
            layer = type(self.model[reached]).__name__
            raise InputError(f"{source}: row {reached} ({layer}) does not fit its inputs: {error}") from error
        return [size // level.shape[2] for level in raw]


def load_model(cfg: str | Path, *, names: Sequence[str] | None = None, anchors: int | None = None) -> Model:
    """Build the model of a YAML, found as given or in `models/` and `models/hub/`.

    Args:
        cfg: the YAML.
        names: class names; their number takes the place of the YAML's `nc`.
        anchors: so many anchors on each scale, in place of the YAML's.

    Raises:
        InputError: there is no such file, or it does not describe a model.
    """
    path = find_yaml(cfg, "models", "models/hub")
    config = read_yaml(path) | ({"anchors": anchors} if anchors else {})
    return Model(config, names=names, source=str(cfg))


def _build_rows(config: Config, source: str) -> tuple[list[nn.Module], list[Step]]:
    rows = [*config["backbone"], *config["head"]]
    layers: list[nn.Module] = []
    channels = {-1: int(config.get("ch", 3))}
    wiring: list[tuple[tuple[int, ...], bool]] = []
    for i, content in enumerate(rows):
        place = f"{source}: row {i}"
        if not (isinstance(content, list) and len(content) == 4):
            raise InputError(f"{place}: expected [from, number, module, args], found {brief(content)}")
        inputs = tuple(_absolute(j, i, place) for j in _as_list(content[0]))
        layer, channels[i] = _build_layer(content, [channels[j] for j in inputs], config, place)
        layers.append(layer)
        wiring.append((inputs, LAYERS[content[2]].joins))
    if not isinstance(layers[-1], Detect):
        raise InputError(f"{source}: row {len(rows) - 1}: the last row must be Detect, found {rows[-1][2]}")
    last_use = {j: i for i, (inputs, _) in enumerate(wiring) for j in inputs}
    return layers, [
        Step(inputs, joins, tuple(j for j, last in last_use.items() if last == i))
        for i, (inputs, joins) in enumerate(wiring)
    ]


def _check_values(config: Config, source: str) -> None:
    """Refuse a YAML in which a key is missing or its value is of another kind or size than any model needs."""
    for key in ("backbone", "head", "anchors", "nc"):
        if key not in config:
            raise InputError(f"{source}: missing key '{key}'")
    for key, (kinds, least, most, expected) in _VALUES.items():
        value = config.get(key, least)
        if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value <= most:
            raise InputError(f"{source}: {key}: expected {expected}, found {brief(value)}")


def _check_forms(config: Config, source: str) -> None:
    """Refuse a YAML whose anchors, rows or activation are not of the form they should be."""
    if not _are_anchors(config["anchors"]):
        found = brief(config["anchors"])
        raise InputError(f"{source}: anchors: expected w, h, w, h, ... for each scale, or a number, found {found}")
    for key in ("backbone", "head"):
        if not isinstance(config[key], list) or not config[key]:
            raise InputError(f"{source}: {key}: expected a list of rows, found {brief(config[key])}")
    if not isinstance(config.get("activation"), str | None):
        raise InputError(f"{source}: activation: expected a name, found {brief(config['activation'])}")


def _are_anchors(value: Any) -> bool:
    """Whether a value is a number of anchors, or lists of their positive sides in pairs."""
    if not isinstance(value, list):
        return isinstance(value, int) and 1 <= value <= 100
    levels = [level if isinstance(level, list) else [] for level in value]
    sides = [side for level in levels for side in level]
    return all(level and len(level) % 2 == 0 for level in levels) and all(
        isinstance(side, int | float) and side > 0 for side in sides
    )


def _absolute(index: Any, row: int, place: str) -> int:
    """A row's `from` as a number counted from the first row; -1 is the image."""
    absolute = row + index if isinstance(index, int) and index < 0 else index
    if not isinstance(absolute, int) or not -1 <= absolute < row:
        raise InputError(f"{place}: 'from' {brief(index)} is not a row before it")
    return absolute


def _build_layer(content: list[Any], inputs: list[int], config: Config, place: str) -> tuple[nn.Module, int]:
    _, number, name, raw_args = content
    refuse_unknown([name], LAYERS, f"{place}: layer")
    layer = LAYERS[name]
    if len(inputs) != 1 and not layer.joins:
        raise InputError(f"{place} ({name}): takes one input, found {len(inputs)}; put a Concat before it")
    if not isinstance(number, int) or number < 1 or not isinstance(raw_args, list):
        raise InputError(f"{place} ({name}): expected a number of at least 1 and a list of arguments")
    repeats = max(round(number * config.get("depth_multiple", 1.0)), 1) if number > 1 else 1
    args = [_resolve(arg, config) for arg in raw_args]
    width, multiple = config.get("width_multiple", 1.0), config.get("channel_multiple", 8)
    try:
        args, channels = layer.rule(Row(inputs, args, repeats, width, multiple))
        inspect.signature(layer.build).bind(*args)
        copies = 1 if layer.repeats else repeats
        first = layer.build(*args)
        further = [layer.build(channels, *args[1:]) for _ in range(copies - 1)]
    except (TypeError, IndexError, ValueError, RuntimeError) as error:
        raise InputError(f"{place} ({name}): arguments {brief(raw_args)} do not fit: {error}") from error
    built = nn.Sequential(first, *further) if further else first
    _set_activation(built, config.get("activation"), place)
    return built, channels


def _resolve(arg: Any, config: Config) -> Any:
    """An argument as a value: `nc` and `anchors` name the YAML's own keys, `None` is Python's."""
    if arg == "nc":
        return config["nc"]
    if arg == "anchors":
        return _anchors(config)
    return LITERALS.get(arg, arg) if isinstance(arg, str) else arg


def _anchors(config: Config) -> list[list[float]]:
    """The YAML's anchors; a number n asks for n on each scale, spread about its stride until AutoAnchor fits them."""
    anchors = config["anchors"]
    if not isinstance(anchors, int):
        return anchors
    scales = len(_as_list(config["head"][-1][0]))
    first = 8 if scales <= 3 else 4  # stride of the finest scale: P3, or P2 in models of four scales
    return [[first * 2**level * 1.6**i for i in range(anchors) for _ in range(2)] for level in range(scales)]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _set_activation(layer: nn.Module, text: str | None, place: str) -> None:
    """Replace the SiLUs of `layer` by the activation that the YAML asks for."""
    if text is None:
        return
    try:
        for module in layer.modules():
            for name, child in module.named_children():
                if isinstance(child, nn.SiLU):
                    setattr(module, name, blocks.activation(text))
    except (KeyError, ValueError) as error:
        known = ", ".join(blocks.ACTIVATIONS)
        raise InputError(f"{place}: activation {text!r} is unknown; known: {known}") from error


if __name__ == "__main__":
    from models.summary import Options, main
    from utils.options import run_script

    run_script(main, Options, "Print the rows of a model with their parameters and cost.")
