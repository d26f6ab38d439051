"""A strided model's weights carried into its SPD form, so that both give the same outputs.

    python -m utils.lift --weights yolov5n.pt --cfg yolov5-spd-n.yaml --output lifted.pt

`models/inherit.py` says how a layer takes over another one's weights. Here, the rows of the two models find each other
in their graphs: by what they read, what they are and the size they give, whatever their numbers.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.blocks import SPD, Concat, Conv
from models.inherit import (
    AT_STRIDE_ONE,
    CHANNELWISE,
    IN_LARGER_KERNEL,
    RULES,
    Columns,
    Match,
    View,
    input_kernels,
    spread,
)
from models.yolo import Model, load_model
from utils.checkpoint import Weights, read_weights, save_checkpoint, transfer
from utils.options import InputError, option, run_script


@dataclass(frozen=True)
class LiftedRow:
    """What became of a row of the new model."""

    row: int
    layer: str
    source: int | None  # the old model's row that it stands for
    how: str
    carried: list[str]  # tensors
    anew: list[str]  # tensors and classes that keep the new model's own initialisation

    def __str__(self) -> str:
        origin = "without a counterpart" if self.source is None else f"from row {self.source}, {self.how}"
        text = f"row {self.row} ({self.layer}) {origin}: {len(self.carried)} tensors carried over"
        shown = ", ".join(self.anew[:3]) + (", ..." if len(self.anew) > 3 else "")
        return f"{text}, {len(self.anew)} anew ({shown})" if self.anew else text


@dataclass(frozen=True)
class LiftReport:
    """What became of each row that has tensors, and how far the outputs are from the strided model's.

    `difference` is of decoded outputs on a test image, relative to each output's largest; None when no scale matches.
    """

    rows: list[LiftedRow]
    difference: float | None

    @property
    def lifted(self) -> list[LiftedRow]:
        """The rows that took over a strided convolution."""
        return [row for row in self.rows if row.how in (AT_STRIDE_ONE, IN_LARGER_KERNEL)]

    def summary(self) -> str:
        """One line."""
        carried = sum(len(row.carried) for row in self.rows)
        text = f"{carried} tensors carried over, {len(self.lifted)} strided rows lifted into space-to-depth"
        return text if self.difference is None else f"{text}, outputs differ by {self.difference:.1e} at most"

    def __str__(self) -> str:
        return "\n  ".join((self.summary(), *(str(row) for row in self.rows if row.anew)))


def lift(weights: Weights, model: Model, *, anchors: bool = True) -> LiftReport | None:
    """Carry a strided model's weights into a model that has space-to-depth in the place of its strides.

    What finds no counterpart keeps its initialisation. Classes find each other by name, or by place where no name is
    shared and their number is the same. Without `anchors`, the model keeps its own.

    Returns:
        None, with the model left as it is, when no strided row finds its SPD form, or the weights' own YAML does not
        build here.
    """
    old = _rebuild(weights) if any(isinstance(module, SPD) for module in model.modules()) else None
    if old is None:
        return None
    lifter = _Lifter(old, model, anchors=anchors)
    found = list(lifter.match_rows())
    rows = [row for row, _ in found if row.carried or row.anew]
    if not LiftReport(rows, None).lifted:
        return None
    with torch.no_grad():
        for row, tensors in found:
            state = model.model[row.row].state_dict()  # shares its memory with the model
            for name, tensor in tensors.items():
                state[name].copy_(tensor)
    if anchors:
        model.config["anchors"] = model.head.anchors_in_pixels().flatten(1).round(decimals=2).tolist()
    return LiftReport(rows, lifter.difference())


@torch.no_grad()
def start_strided(model: Model) -> list[int]:
    """Turn a fresh model's initialisation into the lift of a freshly initialised strided model's.

    Columns that read a sub-map other than (0, 0) of a convolution at stride 1 become zero, and the rest of such a
    kernel has the spread that the strided layer's smaller fan-in would have given it. Nothing random is drawn.

    Returns:
        The rows that were changed.
    """
    graph = _Graph(model, 4 * model.max_stride)
    read: dict[int, Tensor] = {-1: torch.ones(graph.shapes[-1][0], dtype=torch.bool)}  # channels of a strided model
    changed = []
    for j, (layer, inputs) in enumerate(zip(graph.layers[:-1], graph.inputs, strict=False)):
        given = torch.cat([read[i] for i in inputs])
        if isinstance(layer, SPD) and graph.only_feeds_space_to_depth(inputs[0]):
            read[j] = torch.cat((given, given.new_zeros(len(given) * (layer.scale**2 - 1))))
        elif isinstance(layer, (Concat, *CHANNELWISE)):
            read[j] = given
        else:
            read[j] = torch.ones(graph.shapes[j][0], dtype=torch.bool)
            kernels = None if given.all() else input_kernels(layer)
            for name in kernels or ():
                kernel = layer.get_parameter(name)
                kernel.mul_(given[None, :, None, None] * (len(given) / int(given.sum())) ** 0.5)
            changed += [j] if kernels else []
    return changed


def _rebuild(weights: Weights) -> Model | None:
    """The model that the weights came from; None if this project has no such layers."""
    with torch.random.fork_rng(devices=[]):  # a run draws the same random numbers whether it lifts or not
        try:
            model = Model(weights.config, names=weights.names, source=str(weights.source))
        except InputError:
            return None
    report = transfer(model, weights)
    return None if report.missing or report.mismatched else model


class _Graph:
    """A model's rows, what each of them reads, and the shapes (C, H, W) of what others read."""

    def __init__(self, model: Model, size: int) -> None:
        self.layers = list(model.model)
        self.inputs = [step.inputs for step in model.steps]
        self.shapes: dict[int, tuple[int, ...]] = {}

        def note(i: int, _: nn.Module, given: Tensor | list[Tensor]) -> None:
            maps = given if isinstance(given, list) else [given]
            self.shapes.update((j, tuple(x.shape[1:])) for j, x in zip(self.inputs[i], maps, strict=True))

        model.shapes_only(size, note)

    def only_feeds_space_to_depth(self, row: int) -> bool:
        """Whether a row is a strided convolution made dense: at stride 1, and read by nothing but space-to-depth."""
        layer = self.layers[row] if row >= 0 else None
        readers = [reader for reader, inputs in zip(self.layers, self.inputs, strict=True) if row in inputs]
        return isinstance(layer, Conv) and layer.conv.stride == (1, 1) and all(isinstance(r, SPD) for r in readers)

    def columns(self, row: int) -> Columns:
        """A row's channels, each standing for itself."""
        return tuple(range(self.shapes[row][0]))


class _Lifter:
    """Goes through the new model's rows in order and tells each by the old model's."""

    def __init__(self, old: Model, new: Model, *, anchors: bool) -> None:
        self.old_model, self.new_model, self.anchors = old, new, anchors
        self.size = 4 * math.lcm(old.max_stride, new.max_stride)  # pixels of the test image
        self.old, self.new = _Graph(old, self.size), _Graph(new, self.size)
        self.classes = _pair_classes(new.names, old.names)
        self.scales: dict[int, int] = {}  # of the new head to the old one's
        self.views: dict[int, View] = {}
        self.taken: set[int] = set()
        if self.old.shapes[-1] == self.new.shapes[-1]:
            self.views[-1] = View(-1, self.old.columns(-1))

    def match_rows(self) -> Iterator[tuple[LiftedRow, dict[str, Tensor]]]:
        """Give each row's part of the report with the tensors that it is to take."""
        for j, layer in enumerate(self.new.layers[:-1]):
            source, how, tensors = None, "", {}
            found = self._find(j)
            if found is not None:
                self.views[j], match = found
                source, how, tensors = self.views[j].row, match.how, match.tensors
                self.taken.add(source)
            yield _describe(j, layer, source, how, tensors), tensors
        yield self._match_head()

    def _find(self, j: int) -> tuple[View, Match] | None:
        """What a new row gives and takes; None if the old model has nothing like it."""
        views = [self.views[i] for i in self.new.inputs[j] if i in self.views]
        layer = self.new.layers[j]
        if len(views) < len(self.new.inputs[j]) or j not in self.new.shapes:
            return None
        if isinstance(layer, Concat):
            return self._join(layer, views)
        if isinstance(layer, SPD) and views[0].dense == layer.scale:
            kept = views[0].columns
            return View(views[0].row, kept + (-1,) * len(kept) * (layer.scale**2 - 1)), Match("in sub-map (0, 0)")
        found = self._find_reader(j, views[0])
        if found is None and isinstance(layer, SPD) and views[0].is_plain:
            return View(views[0].row, views[0].columns, shuffled=layer.scale), Match("in all sub-maps")
        return found

    def _find_reader(self, j: int, view: View) -> tuple[View, Match] | None:
        """Find the old row that reads what a new row reads, by the rule that carries most."""
        readers = [i for i, inputs in enumerate(self.old.inputs) if inputs == (view.row,)]
        for rule in RULES:
            for i in readers:
                if i in self.taken or i not in self.old.shapes:
                    continue
                match = rule(self.new.layers[j], self.old.layers[i], view)
                if match is not None:
                    given = View(i, self.old.columns(i) if match.columns is None else match.columns, match.dense)
                    if self._agrees(j, given):
                        return given, match
        return None

    def _agrees(self, j: int, view: View) -> bool:
        """Whether a row's output has the shape that its view says, and its reader what a dense one needs."""
        _, height, width = self.old.shapes[view.row]
        readers = [layer for layer, inputs in zip(self.new.layers, self.new.inputs, strict=True) if j in inputs]
        reduced = any(isinstance(layer, SPD) and layer.scale == view.dense for layer in readers)
        shape = (len(view.columns), height * view.dense, width * view.dense)
        return self.new.shapes[j] == shape and (view.dense == 1 or reduced)

    def _join(self, layer: Concat, views: Sequence[View]) -> tuple[View, Match] | None:
        """Find the concatenation of the same rows, in whatever order."""
        wanted = sorted(view.row for view in views)
        if layer.dimension != 1 or not all(view.is_plain for view in views):
            return None
        for i, (other, inputs) in enumerate(zip(self.old.layers, self.old.inputs, strict=True)):
            if isinstance(other, Concat) and other.dimension == 1 and sorted(inputs) == wanted and i not in self.taken:
                return View(i, self._joined_columns(views, inputs)), Match("as it is")
        return None

    def _joined_columns(self, views: Sequence[View], inputs: Sequence[int]) -> Columns:
        """Where the channels of joined views lie in the old concatenation of `inputs`."""
        starts: dict[int, list[int]] = {}
        end = 0
        for row in inputs:
            starts.setdefault(row, []).append(end)
            end += self.old.shapes[row][0]
        joined: list[int] = []
        for view in views:
            start = starts[view.row].pop(0)
            joined += [start + column if column >= 0 else -1 for column in view.columns]
        return tuple(joined)

    def _match_head(self) -> tuple[LiftedRow, dict[str, Tensor]]:
        """Carry boxes, objectness and the paired classes of the scales that read the same rows."""
        old, new = self.old_model.head, self.new_model.head
        j, source = len(self.new.layers) - 1, len(self.old.layers) - 1
        views = [self.views.get(row) for row in self.new.inputs[-1]]
        tensors: dict[str, Tensor] = {}
        anchors = new.anchors.clone()
        for scale, view in enumerate(views):
            if view is None or not view.is_plain or view.row not in self.old.inputs[-1]:
                continue
            if old.anchors.shape[1] != new.anchors.shape[1]:
                continue
            place = self.scales[scale] = self.old.inputs[-1].index(view.row)
            anchors[scale] = old.anchors[place]
            theirs, ours = old.m[place].state_dict(), new.m[scale].state_dict()
            theirs["weight"] = spread(theirs["weight"], view.columns)
            tensors |= {f"m.{scale}.{name}": self._outputs(ours[name], theirs[name]) for name in ours}
        if not self.scales:
            return _describe(j, new, None, "", {}), {}
        tensors |= {"anchors": anchors} if self.anchors else {}
        unknown = [f"class {name}" for label, name in enumerate(self.new_model.names) if label not in self.classes]
        return _describe(j, new, source, "as it is", tensors, unknown), tensors

    def _outputs(self, new: Tensor, old: Tensor) -> Tensor:
        """A head's parameter with box, objectness and the paired classes of the old one."""
        anchors = self.new_model.head.anchors.shape[1]
        out = new.clone().view(anchors, -1, *new.shape[1:])
        ours, theirs = self._paired_outputs()
        out[:, ours] = old.view(anchors, -1, *old.shape[1:])[:, theirs]
        return out.view_as(new)

    def _paired_outputs(self) -> tuple[list[int], list[int]]:
        """The new head's outputs that the old one has, and where."""
        shared = [*range(5)]
        return shared + [5 + label for label in self.classes], shared + [5 + label for label in self.classes.values()]

    def difference(self) -> float | None:
        """Compare decoded outputs on an image of noise, in the paired scales; box sizes only if anchors are carried."""
        if not self.scales:
            return None
        noise = torch.Generator().manual_seed(0)
        images = torch.rand(1, self.new.shapes[-1][0], self.size, self.size, generator=noise)
        ours, theirs = self._paired_outputs()
        keep = [k for k, output in enumerate(ours) if self.anchors or output not in (2, 3)]
        new, old = _decode_scales(self.new_model, images), _decode_scales(self.old_model, images)
        a = torch.cat([new[scale] for scale in self.scales])[:, [ours[k] for k in keep]]
        b = torch.cat([old[scale] for scale in self.scales.values()])[:, [theirs[k] for k in keep]]
        return float(((a - b).abs().amax(0) / b.abs().amax(0).clamp(min=torch.finfo(b.dtype).tiny)).max())


def _describe(
    j: int, layer: nn.Module, source: int | None, how: str, tensors: dict[str, Tensor], further: Sequence[str] = ()
) -> LiftedRow:
    names = list(layer.state_dict())
    title = f"{len(layer)} x {type(layer[0]).__name__}" if isinstance(layer, nn.Sequential) else type(layer).__name__
    carried = [name for name in names if name in tensors]
    return LiftedRow(j, title, source, how, carried, [name for name in names if name not in tensors] + [*further])


def _pair_classes(new: Sequence[str], old: Sequence[str]) -> dict[int, int]:
    """Pair classes by name; by number if no name is shared and there are as many."""
    labels = {name: label for label, name in enumerate(old)}
    pairs = {label: labels[name] for label, name in enumerate(new) if name in labels}
    return pairs or ({label: label for label in range(len(new))} if len(new) == len(old) else {})


def _decode_scales(model: Model, images: Tensor) -> list[Tensor]:
    """Decoded outputs (boxes, 5 + nc) of each scale for one image, in evaluation."""
    training = model.training
    with torch.no_grad():
        raw = model.eval()(images)
        decoded = model.decode(raw)[0]
    model.train(training)
    return list(torch.split(decoded, [math.prod(level.shape[1:4]) for level in raw]))


@dataclass
class Options:
    """Command line of utils.lift; a field is a flag."""

    weights: str = option("yolov5n.pt", "checkpoint of a strided model")
    cfg: str = option("yolov5-spd-n.yaml", "YAML of its SPD form, also by its name in models/")
    output: str = option("lifted.pt", "checkpoint to write")


def main(options: Options) -> LiftReport:
    """Lift a checkpoint, print what became of each row and write the new one."""
    weights = read_weights(Path(options.weights))
    model = load_model(options.cfg, names=weights.names)
    report = lift(weights, model)
    if report is None:
        raise InputError(f"{options.cfg}: no row of it is the SPD form of a strided row of {options.weights}")
    save_checkpoint(
        Path(options.output),
        {
            "config": model.config,
            "names": model.names,
            "ema": model.state_dict(),  # in float32, so that nothing is rounded
            "versions": {"torch": str(torch.__version__)},
        },
    )
    sys.stdout.write("\n".join((*map(str, report.rows), f"{options.output}: {report.summary()}")) + "\n")
    return report


if __name__ == "__main__":
    run_script(main, Options, "Carry a strided model's weights into its SPD form.")
