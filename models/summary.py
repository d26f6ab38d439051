"""What a model costs: its rows with their parameters, arithmetic and time; `python models/yolo.py` prints them."""

import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from models import blocks
from models.yolo import Model, load_model
from utils.options import Ranged, option


def gflops(model: Model, size: int = 640) -> float:
    """Arithmetic for one image of `size` px, in 10^9 operations, a multiply-add counted as two."""
    counter = FlopCounterMode(display=False)
    with counter:
        model.shapes_only(size)
    return counter.get_total_flops() / 1e9


def parameters(model: nn.Module) -> int:
    """Number of learnt values."""
    return sum(p.numel() for p in model.parameters())


@dataclass
class Options(Ranged):
    """Print the rows of a model with their parameters and cost."""

    cfg: str = option("yolov5-spd-s.yaml", "model YAML, also by its name in models/")
    imgsz: int = option(
        640, "image size in pixels that the cost is given for", aliases=("--img", "--img-size"), least=1
    )
    batch_size: int = option(1, "images in a batch when profiling", aliases=("--batch",), least=1)
    profile: bool = option(False, "measure each row's time on this machine")


def table(model: Model, options: Options) -> Iterator[str]:
    """Lines of a table: row, inputs, layer, output channels and size, parameters, GFLOPs, and time if asked."""
    rows: list[tuple[nn.Module, Any]] = []
    model.shapes_only(options.imgsz, lambda _, layer, given: rows.append((layer, given)))
    times = _row_times(model, options) if options.profile else None
    yield f"{'row':>4} {'from':>16} {'layer':16} {'output':>16} {'parameters':>11} {'GFLOPs':>8}" + (
        f" {'ms':>8}" if times else ""
    )
    for i, ((layer, given), step) in enumerate(zip(rows, model.steps, strict=True)):
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            weights = {key: value.to("meta") for key, value in layer.state_dict().items()}
            out = functional_call(layer, weights, (given,))
        shapes = [tuple(x.shape[1:]) for x in out] if isinstance(out, list) else [tuple(out.shape[1:])]
        inputs = ",".join("image" if j < 0 else str(j) for j in step.inputs)
        shape = "x".join(map(str, shapes[0])) if len(shapes) == 1 else f"{len(shapes)} scales"
        yield (
            f"{i:4} {inputs:>16} {_title(layer):16} {shape:>16} {parameters(layer):11,}"
            f" {counter.get_total_flops() / 1e9:8.2f}" + (f" {times[i]:8.2f}" if times else "")
        )
    total = f" {sum(times.values()):8.2f} ms" if times else ""
    yield f"{options.cfg}: {parameters(model):,} parameters, {gflops(model, options.imgsz):.1f} GFLOPs{total}"


def _title(layer: nn.Module) -> str:
    if isinstance(layer, nn.Sequential):
        return f"{len(layer)} x {type(layer[0]).__name__}"
    return f"{type(layer).__name__} x{len(layer.m)}" if isinstance(layer, blocks.C3) else type(layer).__name__


@torch.inference_mode()
def _row_times(model: Model, options: Options, repeats: int = 10) -> dict[int, float]:
    """Median milliseconds of each row on a batch of random images."""
    times: dict[int, float] = {}

    def measure(i: int, layer: nn.Module, given: Any) -> None:
        samples = []
        for _ in range(repeats):
            start = time.perf_counter()
            layer([x.clone() for x in given] if isinstance(given, list) else given.clone())
            samples.append((time.perf_counter() - start) * 1e3)
        times[i] = statistics.median(samples)

    size, channels = options.imgsz, int(model.config.get("ch", 3))
    model.eval()(torch.rand(options.batch_size, channels, size, size), measure)
    return times


def main(options: Options) -> None:
    """Print the table."""
    model = load_model(options.cfg)
    size = math.ceil(options.imgsz / model.max_stride) * model.max_stride
    for line in table(model, replace(options, imgsz=size)):
        sys.stdout.write(line + "\n")
