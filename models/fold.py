"""Exact rewrites of a model for speed: batch normalisation into convolutions, space-to-depth into what follows it.

Space-to-depth followed by a k x k convolution is a strided (k * scale) x (k * scale) convolution with the weights laid
out anew. With a concatenation between them, the convolution is a sum of one such part for each input. So the shuffled
copy of a map never has to exist, in training neither: the layout is made from the small weight in each forward pass,
and gradients flow through it.

The model's rows, its names and its state_dict stay what they are. Only its `folded` graph runs differently, on the same
parameters; whoever adds a layer need not know.
"""

import copy
import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.blocks import SPD, Conv
from models.head import Detect
from models.network import Network
from models.yolo import Model

M = TypeVar("M", bound=Network)


def fuse(model: M) -> M:
    """Return a copy for inference in which each batch normalisation is part of the convolution before it."""
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    fused.folded = None
    for module in fused.modules():
        if isinstance(module, Conv):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()  # type: ignore[assignment]  # what Conv calls in its place
        elif isinstance(module, nn.Sequential):
            _fuse_neighbours(module)
        elif isinstance(module, nn.SiLU):
            module.inplace = True  # in training it would cost a copy: the gradient needs what it was given
    return fused


def _fuse_neighbours(sequence: nn.Sequential) -> None:
    """Fuse a convolution with the batch normalisation that directly follows it, as in a ResNet."""
    for place, (conv, norm) in enumerate(itertools.pairwise(list(sequence))):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            sequence[place], sequence[place + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


def fold(model: M, *, frozen: bool = False) -> M:
    """Let a model run its convolutions over space-to-depth in one step; returns the model itself.

    In training, batch normalisation and the SiLU behind it become one step, too, which keeps one map less. With
    `frozen`, for a fused model whose weights will not change any more, the new layouts are made once, and 1x1
    convolutions over the same space-to-depth become one.
    """
    graph = _trace(model)
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for node in list(graph.nodes):
        found = _fold_inputs(node, modules)
        if found is not None:
            conv = modules[str(node.target)]
            assert isinstance(conv, nn.Conv2d)
            maps, scales = found
            node.target = f"{node.target}.folded"
            node.args = tuple(maps)
            modules[node.target] = FoldedConv(conv, scales, frozen=frozen)
    if frozen:
        _join_siblings(graph, modules)
    else:
        _join_activations(graph, modules)
    for node in reversed(list(graph.nodes)):  # only what folding has left without a use; a row of the YAML stays
        if not node.users and (_joins_channels(node) or isinstance(modules.get(str(node.target)), SPD)):
            graph.erase_node(node)
    model.folded = (fx.GraphModule(modules, graph),)
    return model


def _join_activations(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Let each batch normalisation run with the SiLU behind it."""
    for node in list(graph.nodes):
        norm, follower = modules.get(str(node.target)), next(iter(node.users), None)
        activation = modules.get(str(follower.target)) if follower is not None and len(node.users) == 1 else None
        if type(norm) is nn.BatchNorm2d and isinstance(activation, nn.SiLU) and norm.momentum is not None:
            assert follower is not None
            node.target = f"{node.target}.activated"
            modules[node.target] = ActivatedNorm(norm)
            follower.replace_all_uses_with(node)
            graph.erase_node(follower)


def _join_siblings(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Let folded 1x1 convolutions that read the same maps, as the first two of a C3 do, run as one.

    Plain ones gain nothing from it: measured, the parts' copies cost what the single multiplication saves.
    """
    families: dict[tuple[Any, ...], list[fx.Node]] = {}
    for node in graph.nodes:
        layer = modules.get(str(node.target))
        if isinstance(layer, FoldedConv) and layer.conv.kernel_size == (1, 1):
            families.setdefault((node.args, layer.scales), []).append(node)
    for nodes in families.values():
        if len(nodes) > 1:
            _join(graph, modules, nodes)


def _join(graph: fx.Graph, modules: dict[str, nn.Module], nodes: list[fx.Node]) -> None:
    """Replace the convolutions of `nodes`, and the SiLU behind each if all have one, by one and its parts."""
    layers = [modules[str(node.target)] for node in nodes]
    name = f"{nodes[0].target}.joint"
    modules[name] = FoldedConv.joint([layer for layer in layers if isinstance(layer, FoldedConv)])
    followers = [next(iter(node.users)) for node in nodes if len(node.users) == 1]
    activated = [node for node in followers if isinstance(modules.get(str(node.target)), nn.SiLU)]
    ends = activated if len(activated) == len(nodes) else nodes
    with graph.inserting_before(nodes[0]):
        whole = graph.call_module(name, nodes[0].args)
        if ends is activated:
            whole = graph.call_module(str(ends[0].target), (whole,))
        start = 0
        for layer, end in zip(layers, ends, strict=True):
            assert isinstance(layer, FoldedConv)
            part = graph.call_function(torch.narrow, (whole, 1, start, layer.conv.out_channels))
            end.replace_all_uses_with(part)
            start += layer.conv.out_channels
    for node in dict.fromkeys((*ends, *nodes)):
        graph.erase_node(node)


def depth_to_kernel(weight: Tensor, scale: int) -> Tensor:
    """Lay out a kernel over space-to-depth's channels as one over pixels: (O, C * s^2, k, k) to (O, C, s*k, s*k)."""
    out, channels, height, width = weight.shape
    parts = weight.view(out, scale, scale, channels // scale**2, height, width)  # (O, column, row, C, k, k)
    return parts.permute(0, 3, 4, 2, 5, 1).reshape(out, -1, height * scale, width * scale)


class FoldedConv(nn.Module):
    """A convolution over the concatenation of maps, some of them through space-to-depth first, without either.

    Called on the maps as they are before space-to-depth.
    """

    def __init__(self, conv: nn.Conv2d, scales: Sequence[int], *, frozen: bool = False) -> None:
        """Share the parameters of `conv`; `scales` has each map's space-to-depth scale, 1 for none."""
        super().__init__()
        self.conv = conv
        self.scales = tuple(scales)
        self.frozen = frozen
        self.kernels: list[Tensor] = []  # kept once made, if frozen

    @classmethod
    def joint(cls, layers: Sequence["FoldedConv"]) -> "FoldedConv":
        """One frozen layer that gives the channels of several, of one kernel size and on the same maps, in turn."""
        convs = [layer.conv for layer in layers]
        whole = copy.deepcopy(convs[0])
        whole.out_channels = sum(conv.out_channels for conv in convs)
        whole.weight = nn.Parameter(torch.cat([conv.weight for conv in convs]), requires_grad=False)
        biases = [conv.bias for conv in convs if conv.bias is not None]
        whole.bias = nn.Parameter(torch.cat(biases), requires_grad=False) if biases else None
        return cls(whole, layers[0].scales, frozen=True)

    def forward(self, *maps: Tensor) -> Tensor:
        """[(B, C_i, H * scale_i, W * scale_i)] to (B, C', H, W)."""
        kernels = self.kernels or self._make_kernels([x.shape[1] for x in maps])
        if self.frozen and not self.kernels:
            self.kernels = kernels = [kernel.contiguous(memory_format=torch.channels_last) for kernel in kernels]
        out = None
        for x, kernel, scale in zip(maps, kernels, self.scales, strict=True):
            assert all(side % scale == 0 for side in x.shape[-2:]), f"{tuple(x.shape)} is not divisible by {scale}"
            padding = [pad * scale for pad in self.conv.padding if isinstance(pad, int)]
            part = F.conv2d(x, kernel, self.conv.bias if out is None else None, scale, padding)
            out = part if out is None else out + part
        assert out is not None
        return out

    def _make_kernels(self, channels: Sequence[int]) -> list[Tensor]:
        """The kernel of each map, given the maps' channels."""
        counts = [count * scale**2 for count, scale in zip(channels, self.scales, strict=True)]
        parts = torch.split(self.conv.weight, counts, 1)
        return [
            depth_to_kernel(part, scale) if scale > 1 else part for part, scale in zip(parts, self.scales, strict=True)
        ]


class ActivatedNorm(nn.Module):
    """Batch normalisation and SiLU that keep, for the gradient, the map they are given and not the one between them.

    That one is cheap to make again. A convolution, its normalisation and its activation then hold two maps, not three.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        """Share the parameters and statistics of `norm`."""
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        norm = self.norm
        if not norm.training:
            return F.silu(norm(x))
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        return _NormAndSiLU.apply(
            x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.momentum, norm.eps
        )


class _NormAndSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *statistics: Any) -> Tensor:
        mean, variance, momentum, eps = statistics
        y, *batch = torch.native_batch_norm(x, weight, bias, mean, variance, True, momentum, eps)
        ctx.save_for_backward(x, weight, bias, *batch)
        ctx.eps = eps
        return F.silu(y, inplace=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse_deviation = ctx.saved_tensors
        scale = weight * inverse_deviation
        shift = bias - mean * scale
        y = torch.addcmul(shift[:, None, None], x, scale[:, None, None]).to(x.dtype)
        gradient = torch.ops.aten.silu_backward(gradient, y)
        wanted = list(ctx.needs_input_grad[:3])
        gradients = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse_deviation, True, ctx.eps, wanted
        )
        return (*gradients, None, None, None, None)


class _Tracer(fx.Tracer):
    """Follows a model down to torch's own layers; SPD and Detect stay whole, and so does what cannot be followed."""

    def __init__(self, opaque: set[nn.Module]) -> None:
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` is one node of the graph."""
        own = isinstance(m, SPD | Detect) or bool(m._buffers)  # a graph has no place for the tensors of a part
        return own or m in self.opaque or super().is_leaf_module(m, module_qualified_name)


def _trace(model: Network) -> fx.Graph:
    model.folded = None
    if not isinstance(model, Model):
        return _Tracer(set()).trace(model)
    opaque = {row for row in model.model if not _can_be_followed(row)}
    return _Tracer(opaque).trace(model, concrete_args={"observe": None})


def _can_be_followed(layer: nn.Module) -> bool:
    """Whether a layer does the same whatever the values are, which a trace cannot know."""
    try:
        _Tracer(set()).trace(layer)
    except (fx.proxy.TraceError, TypeError, RuntimeError):
        return False
    return True


def _fold_inputs(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[list[fx.Node], list[int]] | None:
    """The maps that a convolution could take in place of its own, with their scales; None if nothing folds."""
    conv = modules.get(str(node.target)) if node.op == "call_module" else None
    if not isinstance(conv, nn.Conv2d) or not _keeps_size(conv):
        return None
    source = node.args[0]
    assert isinstance(source, fx.Node)
    parts = list(source.args[0]) if _joins_channels(source) else [source]  # type: ignore[arg-type]
    maps, scales = [], []
    for part in parts:
        assert isinstance(part, fx.Node)
        layer = modules.get(str(part.target)) if part.op == "call_module" else None
        shuffled = isinstance(layer, SPD)
        maps.append(part.args[0] if shuffled else part)
        scales.append(layer.scale if isinstance(layer, SPD) else 1)
    return (maps, scales) if max(scales) > 1 else None  # type: ignore[return-value]


def _keeps_size(conv: nn.Conv2d) -> bool:
    """Whether a convolution has an odd kernel at stride 1 that neither groups, dilates nor changes the map's size."""
    kernel = conv.kernel_size
    return (
        all(side % 2 == 1 for side in kernel)
        and conv.stride == (1, 1)
        and conv.padding == tuple(side // 2 for side in kernel)
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
    )


def _joins_channels(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target is not torch.cat or not isinstance(node.args[0], list | tuple):
        return False
    return bool((node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) == 1)
