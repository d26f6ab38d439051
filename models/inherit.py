"""How a layer takes over the weights of a strided one that stood in its place, without changing what comes out.

A convolution at stride 2 is the same one at stride 1 of which space-to-depth's sub-map (0, 0) alone is read: its
weights stay, and the columns of whoever reads the other three sub-maps are zero. Space-to-depth followed by a k x k
convolution is a 2k x 2k one at stride 2, into which a smaller kernel fits with zeros around it (Focus, SPDConv).

A rule takes the new layer, the old one, and the view of the new one's input; it gives None where it does not apply.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from models.blocks import Conv, Focus, SPDConv

Columns = tuple[int, ...]
CHANNELWISE = (nn.Upsample, nn.MaxPool2d, nn.ZeroPad2d)  # layers that see each channel by itself
AT_STRIDE_ONE = "at stride 1"
IN_LARGER_KERNEL = "in a kernel over space-to-depth"


@dataclass(frozen=True)
class View:
    """What a row of a new model gives, told by a row of an old one."""

    row: int  # of the old model; -1 is the image
    columns: Columns  # for each channel the old row's channel that it equals, -1 for one that the old model lacks
    dense: int = 1  # its sides are so many times the old row's, which is its sub-map (0, 0)
    shuffled: int = 1  # it is the old row after space-to-depth of this scale

    @property
    def is_plain(self) -> bool:
        """Whether it is the old row, but for its columns."""
        return self.dense == self.shuffled == 1


@dataclass(frozen=True)
class Match:
    """How a layer takes over an old one: tensors by their name in the new layer, and what its output is."""

    how: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    columns: Columns | None = None  # None: those of the old layer
    dense: int = 1


Rule = Callable[[nn.Module, nn.Module, View], Match | None]


def at_stride_one(new: nn.Module, old: nn.Module, view: View) -> Match | None:
    """Match a strided convolution with the same at stride 1; space-to-depth must follow."""
    if not isinstance(new, Conv) or not isinstance(old, Conv) or not view.is_plain:
        return None
    a, b = new.conv, old.conv
    scale = b.stride[0]
    same = (a.kernel_size, a.padding, a.dilation, a.groups) == (b.kernel_size, b.padding, b.dilation, b.groups)
    if not same or a.stride != (1, 1) or scale == 1:
        return None
    tensors = _carry(new, old, view.columns)
    return None if tensors is None else Match(AT_STRIDE_ONE, tensors, dense=scale)


def in_larger_kernel(new: nn.Module, old: nn.Module, view: View) -> Match | None:
    """Match a strided convolution with one over space-to-depth, whose window in pixels has room for its kernel."""
    inner: nn.Module = new
    scale, prefix = view.shuffled, ""
    if isinstance(new, Focus | SPDConv) and view.is_plain:
        inner, scale, prefix = new.conv, new.spd.scale, "conv."
    if not isinstance(inner, Conv) or not isinstance(old, Conv) or scale == 1:
        return None
    a, b = inner.conv, old.conv
    ordinary = a.stride == a.dilation == b.dilation == (1, 1) and a.groups == b.groups == 1
    if not ordinary or b.stride != (scale, scale) or a.out_channels != b.out_channels:
        return None
    before = [scale * p - q for p, q in zip(_padding(a), _padding(b), strict=True)]  # zeros above and to the left
    after = [scale * k - m - n for k, m, n in zip(a.kernel_size, b.kernel_size, before, strict=True)]
    if min(*before, *after) < 0:
        return None
    kernel = F.pad(spread(b.weight, view.columns), (before[1], after[1], before[0], after[0]))
    theirs = old.state_dict() | {"conv.weight": kernel_to_depth(kernel, scale)}
    return Match(IN_LARGER_KERNEL, {f"{prefix}{name}": tensor for name, tensor in theirs.items()})


def as_it_is(new: nn.Module, old: nn.Module, view: View) -> Match | None:
    """Match layers of one kind; whoever reads the input takes the columns of an input that has others than before."""
    if not view.is_plain or not _are_alike(new, old):
        return None
    if isinstance(new, CHANNELWISE):
        return Match("as it is", columns=view.columns)
    tensors = _carry(new, old, view.columns)
    return None if tensors is None else Match("as it is", tensors)


def in_its_place(new: nn.Module, _old: nn.Module, _view: View) -> Match | None:
    """Match any layer that learns: it starts anew, but the rows after it still have their counterparts."""
    return Match("of another kind") if new.state_dict() else None


RULES: tuple[Rule, ...] = (at_stride_one, in_larger_kernel, as_it_is, in_its_place)  # those that carry most come first


def spread(weight: Tensor, columns: Columns) -> Tensor:
    """(O, C, k, k) to (O, len(columns), k, k): each column taken from where `columns` says, zero for -1."""
    index = torch.tensor(columns)
    taken = weight.detach()[:, index.clamp(min=0)]
    taken[:, index < 0] = 0
    return taken


def kernel_to_depth(weight: Tensor, scale: int) -> Tensor:
    """Undo `models.fold.depth_to_kernel`: (O, C, s*k, s*k) over pixels to (O, C * s^2, k, k) over space-to-depth."""
    out, channels, height, width = weight.shape
    parts = weight.view(out, channels, height // scale, scale, width // scale, scale)  # (O, C, k, row, k, column)
    return parts.permute(0, 5, 3, 1, 2, 4).reshape(out, channels * scale**2, height // scale, width // scale)


def _are_alike(new: nn.Module, old: nn.Module) -> bool:
    """Whether two layers differ at most in channels, repeats and activations."""
    if type(new) is not type(old):
        return False
    if isinstance(new, nn.Sequential) and isinstance(old, nn.Sequential) and type(new[0]) is not type(old[0]):
        return False
    if not old.state_dict():
        return repr(new) == repr(old)
    others = dict(old.named_modules())
    return all(_geometry(module) == _geometry(others.get(name, module)) for name, module in new.named_modules())


def _geometry(module: nn.Module) -> tuple[object, ...]:
    if not isinstance(module, nn.Conv2d):
        return ()
    return module.kernel_size, module.stride, module.padding, module.dilation, module.padding_mode


def _padding(conv: nn.Conv2d) -> list[int]:
    return [pad for pad in conv.padding if isinstance(pad, int)]  # `Conv` knows no other


def _carry(new: nn.Module, old: nn.Module, columns: Columns) -> dict[str, Tensor] | None:
    """The old layer's tensors, for an input with these columns; None if anything but a convolution reads these."""
    theirs = old.state_dict()
    if columns != tuple(range(len(columns))):
        readers = input_kernels(new)
        if readers is None:
            return None
        theirs |= {name: spread(theirs[name], columns) for name in readers if name in theirs}
    ours = new.state_dict()
    return {name: theirs[name] for name in ours if name in theirs and theirs[name].shape == ours[name].shape}


def input_kernels(layer: nn.Module) -> set[str] | None:
    """Names of the kernels that read a layer's input; None if anything else reads it, or the layer cannot be traced."""
    try:
        graph = fx.Tracer().trace(layer)
    except (fx.proxy.TraceError, TypeError, RuntimeError):
        return None
    names = set()
    for node in next(iter(graph.nodes)).users:  # the first node is the input
        module = layer.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, nn.Conv2d) or module.groups != 1:
            return None
        names.add(f"{node.target}.weight")
    return names
