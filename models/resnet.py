"""ResNet-18 and ResNet-50 for image classification, strided or with SPD-Conv, in the names and shapes of the authors'.

In the SPD form a strided convolution becomes one at full resolution, followed by space-to-depth; its normalisation and
ReLU are of four times the channels, and the next convolution reads all of them. Unlike in the detectors, that next
convolution cannot take space-to-depth into itself: between the two stand a normalisation that is another one for each
sub-map, and a ReLU. `models.fold` folds the stem, and the shortcuts if they have space-to-depth.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from models.blocks import SPD, Focus, SPDConv
from models.network import Network
from utils.options import InputError, brief, from_mapping

CLASSIFY = "classify"
STEM_SIZES = {"small": 32, "imagenet": 224}  # usual side of the images that a stem is for, in pixels
WIDTHS = (64, 128, 256, 512)
# Mean and deviation of red, green and blue, and the side in pixels, by the classes that the authors' checkpoints have:
# those of Tiny ImageNet, and of CIFAR-100, with whose figures and outputs they trained on CIFAR-10
AUTHORS_IMAGES: dict[int, dict[str, Any]] = {
    200: {"mean": [0.4803, 0.4481, 0.3976], "std": [0.2764, 0.2689, 0.2816], "imgsz": 64},
    100: {"mean": [0.5071, 0.4865, 0.4409], "std": [0.2673, 0.2564, 0.2762], "imgsz": 32},
}
TORCHVISIONS_IMAGES: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "imgsz": 224}


@dataclass(frozen=True)
class ResNetConfig:
    """What a ResNet is built from; the dictionary of it is a checkpoint's config.

    Attributes:
        arch: one of ARCHITECTURES.
        nc: number of classes.
        stem: "small" keeps the resolution of images of 32 or 64 px (in the SPD form, halves it), "imagenet" is a
            quarter of it.
        spd_shortcut: space-to-depth in the shortcuts too, where the authors kept strided convolutions.
        mean: of each colour, taken from images in 0..1.
        std: of each colour, that they are divided by.
        imgsz: pixels of the square images' side, as trained.
        shrink: how many times fewer pixels a side they showed, as trained.
        task: tells the checkpoints of classifiers from those of detectors.
    """

    arch: str
    nc: int
    stem: str = "small"
    spd_shortcut: bool = False
    mean: list[float] = field(default_factory=lambda: [0.0] * 3)
    std: list[float] = field(default_factory=lambda: [1.0] * 3)
    imgsz: int = 32
    shrink: int = 1
    task: str = CLASSIFY

    @property
    def spd(self) -> bool:
        """Whether space-to-depth takes the place of strides."""
        return self.arch.endswith("_spd")

    @property
    def max_stride(self) -> int:
        """What space-to-depth needs an image's sides to be multiples of; a strided network takes any, rounding up."""
        return {"small": 16, "imagenet": 32}[self.stem]


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)


def _halving(channels_in: int, channels_out: int, *, spd: bool) -> list[nn.Module]:
    """A 3x3 convolution that halves a map, its normalisation and ReLU; with space-to-depth, of 4 x `channels_out`."""
    if not spd:
        return [_conv(channels_in, channels_out, 3, 2), nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]
    wide = 4 * channels_out
    return [_conv(channels_in, channels_out, 3), SPD(2), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]


class Block(nn.Module):
    """What the blocks of both depths have in common: a shortcut, the sum, a ReLU."""

    expansion: int  # of a stage's width, what comes out

    def __init__(self, channels_in: int, width: int, stride: int, config: ResNetConfig) -> None:
        super().__init__()
        spd = config.spd and stride == 2
        out = width * self.expansion
        self.residual_function = nn.Sequential(*self.residual(channels_in, width, stride, spd=spd))
        self.shortcut = nn.Sequential()
        if spd and config.spd_shortcut:
            self.shortcut = nn.Sequential(SPD(2), _conv(4 * channels_in, out, 1), nn.BatchNorm2d(out))
        elif stride == 2 or channels_in != out:
            self.shortcut = nn.Sequential(_conv(channels_in, out, 1, stride), nn.BatchNorm2d(out))
        self.relu = nn.ReLU(inplace=True)

    def residual(self, channels_in: int, width: int, stride: int, *, spd: bool) -> list[nn.Module]:
        """Make the layers beside the shortcut."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, width * expansion, H/stride, W/stride)."""
        return self.relu(self.residual_function(x) + self.shortcut(x))


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    expansion = 1

    def residual(self, channels_in: int, width: int, stride: int, *, spd: bool) -> list[nn.Module]:
        """Make the layers beside the shortcut."""
        first = _plain(channels_in, width, 3) if stride == 1 else _halving(channels_in, width, spd=spd)
        return [*first, _conv(4 * width if spd else width, width, 3), nn.BatchNorm2d(width)]


class BottleneckBlock(Block):
    """A 3x3 convolution between two 1x1 ones."""

    expansion = 4

    def residual(self, channels_in: int, width: int, stride: int, *, spd: bool) -> list[nn.Module]:
        """Make the layers beside the shortcut."""
        middle = _plain(width, width, 3) if stride == 1 else _halving(width, width, spd=spd)
        out = width * self.expansion
        last = [_conv(4 * width if spd else width, out, 1), nn.BatchNorm2d(out)]
        return [*_plain(channels_in, width, 1), *middle, *last]


def _plain(channels_in: int, channels_out: int, kernel: int) -> list[nn.Module]:
    return [_conv(channels_in, channels_out, kernel), nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]


ARCHITECTURES: dict[str, tuple[type[Block], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (BottleneckBlock, (3, 4, 6, 3)),
    "resnet18_spd": (BasicBlock, (2, 2, 2, 2)),
    "resnet50_spd": (BottleneckBlock, (3, 4, 6, 3)),
}


def _stem(config: ResNetConfig) -> nn.Module:
    if config.stem == "small":
        if not config.spd:
            return nn.Sequential(*_plain(3, 64, 3))
        stem = Focus(3, 64, 1)
        stem.conv.bn = nn.BatchNorm2d(64)  # with torch's figures, as the authors have it here
        return stem
    if not config.spd:
        first = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        return nn.Sequential(first, nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(Focus(3, 64, 3), SPDConv(64, 64, 3))


class Normalise(nn.Module):
    """Colours (B, 3, H, W) less their mean, divided by their deviation; of the config, so nothing in a state_dict."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        deviation = torch.tensor(std)[:, None, None]
        self.register_buffer("scale", 1 / deviation, persistent=False)
        self.register_buffer("shift", -torch.tensor(mean)[:, None, None] / deviation, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """To the same shape."""
        return torch.addcmul(self.shift, x, self.scale)


class ResNet(Network):
    """A classifier; called on images (B, 3, H, W) in 0..1, it returns logits (B, nc)."""

    def __init__(self, config: dict[str, Any], *, names: Sequence[str] | None = None, source: str = "model") -> None:
        """Build the network.

        Args:
            config: the fields of `ResNetConfig`; `names`, when given, decides its `nc`.
            names: the class names; "0", "1", ... when absent.
            source: what to call the config in messages.

        Raises:
            InputError: the config has a key or a value that none of these networks has.
        """
        super().__init__()
        known = read_config(config | ({"nc": len(names)} if names is not None else {}), source)
        self.config = asdict(known)
        self.names = list(names) if names is not None else [str(i) for i in range(known.nc)]
        self.normalise = Normalise(known.mean, known.std)
        block, repeats = ARCHITECTURES[known.arch]
        self.conv1 = _stem(known)
        channels, stages = 64, []
        for number, (width, repeat) in enumerate(zip(WIDTHS, repeats, strict=True)):
            stages.append(_stage(block, channels, width, repeat, known, stride=2 if number else 1))
            channels = width * block.expansion
        self.conv2_x, self.conv3_x, self.conv4_x, self.conv5_x = stages
        self.fc = nn.Linear(channels, known.nc)

    @property
    def max_stride(self) -> int:
        """As the config has it."""
        return ResNetConfig(**self.config).max_stride

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, nc)."""
        if self.folded is not None:
            return self.folded[0](images)
        x = self.conv1(self.normalise(images))
        x = self.conv5_x(self.conv4_x(self.conv3_x(self.conv2_x(x))))
        return self.fc(x.mean((2, 3)))


def _stage(
    block: type[Block], channels: int, width: int, repeat: int, config: ResNetConfig, *, stride: int
) -> nn.Sequential:
    first = block(channels, width, stride, config)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1, config) for _ in range(repeat - 1)))


def read_config(content: dict[str, Any], source: str) -> ResNetConfig:
    """Read a checkpoint's config, or one to build from; `source` is what to call it in messages.

    Raises:
        InputError: it has a key or a value that none of these networks has.
    """
    for key in ("arch", "nc"):
        if key not in content:
            raise InputError(f"{source}: missing key '{key}'")
    config = from_mapping(ResNetConfig, content, source)
    if config.arch not in ARCHITECTURES:
        raise InputError(f"{source}: arch: expected one of {', '.join(ARCHITECTURES)}, found {config.arch!r}")
    if config.stem not in STEM_SIZES:
        raise InputError(f"{source}: stem: expected one of {', '.join(STEM_SIZES)}, found {config.stem!r}")
    if config.spd_shortcut and not config.spd:
        raise InputError(f"{source}: spd_shortcut: {config.arch} has no space-to-depth")
    if not 1 <= config.nc <= 100_000:
        raise InputError(f"{source}: nc: expected a number of classes, found {config.nc}")
    _check_images(config, source)
    return config


def _check_images(config: ResNetConfig, source: str) -> None:
    for key in ("imgsz", "shrink"):
        if getattr(config, key) < 1:
            raise InputError(f"{source}: {key}: expected 1 or more, found {getattr(config, key)}")
    for key, least in (("mean", 0.0), ("std", 1e-6)):
        values = getattr(config, key)
        if len(values) != 3 or not all(isinstance(value, float | int) and least <= value <= 1 for value in values):
            raise InputError(f"{source}: {key}: expected three numbers of 0..1, found {brief(values)}")


def recognise(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Tell from the names and shapes in a state_dict which of these networks it is of; None if of none.

    What the SPD-Conv authors' and torchvision's images were like is known by the classes and by the stem.
    """
    depth = "50" if "conv2_x.0.residual_function.6.weight" in state else "18"
    blocks = {re.sub(r"(\d\.)residual_function.*", r"\1", name) for name in state if "residual_function" in name}
    _, repeats = ARCHITECTURES[f"resnet{depth}"]
    expected = {f"conv{number}_x.{block}." for number, repeat in enumerate(repeats, 2) for block in range(repeat)}
    first, last = state.get("conv1.0.weight"), state.get("fc.weight")
    if last is None or last.ndim != 2 or blocks != expected:
        return None
    classes = len(last)
    if "conv1.conv.conv.weight" in state:
        config = ResNetConfig(f"resnet{depth}_spd", classes, **AUTHORS_IMAGES.get(classes, {}))
    elif first is None:
        return None
    elif first.shape[-1:] == (7,):
        config = ResNetConfig(f"resnet{depth}", classes, stem="imagenet", **TORCHVISIONS_IMAGES)
    else:
        config = ResNetConfig(f"resnet{depth}", classes, **AUTHORS_IMAGES.get(classes, {}))
    return asdict(config)


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a torchvision ResNet the names that they have here; other state_dicts stay as they are."""
    if "layer1.0.conv1.weight" not in state:
        return dict(state)
    return {_renamed(name): tensor for name, tensor in state.items()}


def _renamed(name: str) -> str:
    """Where here is what torchvision calls `layer2.0.bn1.bias`: second stage, first block, first normalisation."""
    first, _, rest = name.partition(".")
    if first in ("conv1", "bn1"):
        return f"conv1.{'conv1 bn1'.split().index(first)}.{rest}"
    if not (found := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)", name)):
        return name
    stage, block, kind, number, tensor = found.groups()
    if kind == "downsample.":
        place = f"shortcut.{number}"
    else:  # convolution, normalisation and ReLU follow one another
        place = f"residual_function.{3 * (int(number) - 1) + (kind == 'bn')}"
    return f"conv{int(stage) + 1}_x.{block}.{place}.{tensor}"


def build_resnet(arch: str, nc: int, **settings: Any) -> ResNet:
    """Build a network of ARCHITECTURES with random weights; `settings` are further fields of `ResNetConfig`."""
    return ResNet({"arch": arch, "nc": nc, **settings})


def resnet18(nc: int = 10, **settings: Any) -> ResNet:
    """ResNet-18 with strides, of 11.2 million parameters."""
    return build_resnet("resnet18", nc, **settings)


def resnet50(nc: int = 10, **settings: Any) -> ResNet:
    """ResNet-50 with strides, of 23.5 million parameters."""
    return build_resnet("resnet50", nc, **settings)


def resnet18_spd(nc: int = 10, **settings: Any) -> ResNet:
    """ResNet-18 with space-to-depth, of 20.5 million parameters."""
    return build_resnet("resnet18_spd", nc, **settings)


def resnet50_spd(nc: int = 10, **settings: Any) -> ResNet:
    """ResNet-50 with space-to-depth, of 27.7 million parameters."""
    return build_resnet("resnet50_spd", nc, **settings)
