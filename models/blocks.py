"""The layers that a model YAML may name, from `Conv` to `SPD`; names of submodules are those of YOLOv5's state_dicts.

Every layer maps (B, C, H, W) to (B, C', H', W'); `channels_in` and `channels_out` come first in every constructor.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def space_to_depth(x: Tensor, scale: int = 2) -> Tensor:
    """Move each `scale` x `scale` block of pixels into channels: (B, C, H, W) to (B, C * scale^2, H/scale, W/scale).

    The sub-maps x[row::scale, column::scale] follow one another, rows running fastest: (0,0), (1,0), (0,1), (1,1) for
    scale 2 (Sunkara and Luo 2022, section 3.1). It is not the order of `nn.PixelUnshuffle`.
    """
    assert all(side % scale == 0 for side in x.shape[-2:]), f"{tuple(x.shape)} is not divisible by {scale}"
    return torch.cat([x[..., row::scale, column::scale] for column in range(scale) for row in range(scale)], 1)


class SPD(nn.Module):
    """Space-to-depth: halves a map's sides and loses nothing; a non-strided convolution is to follow."""

    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C * scale^2, H/scale, W/scale)."""
        return space_to_depth(x, self.scale)

    def extra_repr(self) -> str:
        """Show the scale when the model is printed."""
        return f"scale={self.scale}"


class Conv(nn.Module):
    """Convolution, batch normalisation, SiLU; padding keeps the size at stride 1 unless given."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        dilation: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        same = (dilation * (height - 1) // 2, dilation * (width - 1) // 2)
        self.conv = nn.Conv2d(
            channels_in,
            channels_out,
            (height, width),
            stride,
            same if padding is None else padding,
            groups=groups,
            dilation=dilation,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(channels_out, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/stride, W/stride)."""
        return self.act(self.bn(self.conv(x)))


class DWConv(Conv):
    """Depthwise `Conv`: as many groups as the greatest common divisor of the channels allows."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, act: bool = True) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, groups=math.gcd(channels_in, channels_out), act=act)


class Focus(nn.Module):
    """Space-to-depth, then `Conv`: the stem of the SPD models, and of YOLOv5 up to v5."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, padding: int | None = None
    ) -> None:
        super().__init__()
        self.spd = SPD(2)
        self.conv = Conv(4 * channels_in, channels_out, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/2, W/2)."""
        return self.conv(self.spd(x))


class SPDConv(nn.Module):
    """SPD-Conv as the paper's text has it: space-to-depth, then a non-strided `Conv`; replaces a strided `Conv`."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3, scale: int = 2) -> None:
        super().__init__()
        self.spd = SPD(scale)
        self.conv = Conv(channels_in * scale**2, channels_out, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/scale, W/scale)."""
        return self.conv(self.spd(x))


class Bottleneck(nn.Module):
    """1x1 and 3x3 `Conv`, with a residual connection where the channels allow it."""

    def __init__(
        self, channels_in: int, channels_out: int, shortcut: bool = True, groups: int = 1, expansion: float = 0.5
    ) -> None:
        super().__init__()
        hidden = int(channels_out * expansion)
        self.cv1 = Conv(channels_in, hidden, 1)
        self.cv2 = Conv(hidden, channels_out, 3, groups=groups)
        self.add = shortcut and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        out = self.cv2(self.cv1(x))
        return x + out if self.add else out


class CrossConv(nn.Module):
    """A kernel x kernel convolution split into 1 x kernel and kernel x 1, with a residual connection."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 3, shortcut: bool = False, expansion: float = 1.0
    ) -> None:
        super().__init__()
        hidden = int(channels_out * expansion)
        self.cv1 = Conv(channels_in, hidden, (1, kernel))
        self.cv2 = Conv(hidden, channels_out, (kernel, 1))
        self.add = shortcut and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        out = self.cv2(self.cv1(x))
        return x + out if self.add else out


class C3(nn.Module):
    """CSP bottleneck of three convolutions: one half of the channels through `repeats` bottlenecks, one half past."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        repeats: int = 1,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(channels_out * expansion)
        self.cv1 = Conv(channels_in, hidden)
        self.cv2 = Conv(channels_in, hidden)
        self.cv3 = Conv(2 * hidden, channels_out)
        self.m = nn.Sequential(*(self.unit(hidden, shortcut, groups) for _ in range(repeats)))

    def unit(self, channels: int, shortcut: bool, groups: int) -> nn.Module:
        """Make one of the repeated units."""
        return Bottleneck(channels, channels, shortcut, groups, expansion=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C3x(C3):
    """`C3` of cross convolutions."""

    def unit(self, channels: int, shortcut: bool, groups: int) -> nn.Module:  # noqa: ARG002 - crosses have no groups
        """Make one of the repeated units."""
        return CrossConv(channels, channels, 3, shortcut)


class GhostConv(nn.Module):
    """Half of the channels by a convolution, the other half from those by a cheap 5x5 depthwise one."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, act: bool = True) -> None:
        super().__init__()
        half = channels_out // 2
        self.cv1 = Conv(channels_in, half, kernel, stride, act=act)
        self.cv2 = Conv(half, half, 5, groups=half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/stride, W/stride)."""
        half = self.cv1(x)
        return torch.cat((half, self.cv2(half)), 1)


class GhostBottleneck(nn.Module):
    """Residual block of two `GhostConv`, with a strided depthwise convolution between them at stride 2."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        hidden = channels_out // 2
        strided = stride == 2
        self.conv = nn.Sequential(
            GhostConv(channels_in, hidden),
            DWConv(hidden, hidden, kernel, stride, act=False) if strided else nn.Identity(),
            GhostConv(hidden, channels_out, act=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if strided:
            self.shortcut = nn.Sequential(
                DWConv(channels_in, channels_in, kernel, stride, act=False), Conv(channels_in, channels_out, act=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/stride, W/stride)."""
        return self.conv(x) + self.shortcut(x)


class C3Ghost(C3):
    """`C3` of ghost bottlenecks."""

    def unit(self, channels: int, shortcut: bool, groups: int) -> nn.Module:  # noqa: ARG002 - ghosts always add
        """Make one of the repeated units."""
        return GhostBottleneck(channels, channels)


class SPP(nn.Module):
    """Spatial pyramid pooling: max-pools of several sizes side by side."""

    def __init__(self, channels_in: int, channels_out: int, kernels: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        hidden = channels_in // 2
        self.cv1 = Conv(channels_in, hidden)
        self.cv2 = Conv(hidden * (len(kernels) + 1), channels_out)
        self.m = nn.ModuleList(nn.MaxPool2d(kernel, 1, kernel // 2) for kernel in kernels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))


class SPPF(nn.Module):
    """`SPP` by one small pool applied three times over: the same numbers in less time."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 5) -> None:
        super().__init__()
        hidden = channels_in // 2
        self.cv1 = Conv(channels_in, hidden)
        self.cv2 = Conv(hidden * 4, channels_out)
        self.m = nn.MaxPool2d(kernel, 1, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        maps = [self.cv1(x)]
        for _ in range(3):
            maps.append(self.m(maps[-1]))
        return self.cv2(torch.cat(maps, 1))


class Concat(nn.Module):
    """Join maps along a dimension, channels by default."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, maps: list[Tensor]) -> Tensor:
        """[(B, C_i, H, W)] to (B, sum of C_i, H, W)."""
        return torch.cat(maps, self.dimension)


def activation(text: str) -> nn.Module:
    """Make the activation that a YAML's `activation` names: `SiLU`, `nn.LeakyReLU(0.1)`, ...

    Raises:
        KeyError: the name is not one of ACTIVATIONS.
        ValueError: its argument is not a number.
    """
    name, _, argument = text.removeprefix("nn.").removeprefix("torch.nn.").rstrip(")").partition("(")
    make = ACTIVATIONS[name]
    return make(float(argument)) if argument else make()


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "SiLU": nn.SiLU,
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "LeakyReLU": nn.LeakyReLU,
    "Hardswish": nn.Hardswish,
    "Mish": nn.Mish,
    "GELU": nn.GELU,
    "ELU": nn.ELU,
    "Identity": nn.Identity,
}
