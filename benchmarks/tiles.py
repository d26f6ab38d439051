"""What tiles gain on large images, what they cost, and what batches of tiles save, on this machine.

    python -m benchmarks.tiles --weights best.pt --data large.yaml --img 640 --tile 640 --output benchmarks/results/x.md

The speeds of one image, its tiles in batches and one by one, are measured in turns within one process.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import val
from benchmarks.timing import Timed, heading, table, take_turns
from data.annotations import read_annotations
from data.config import load_data_config
from data.dataset import letterboxed_item
from data.images import read_image
from data.loader import Batch, collate
from utils.engine import NmsSettings, Predictor
from utils.options import Ranged, option, run_script
from utils.report import write_text_atomically
from utils.runs import check_image_size, open_model
from utils.tiles import TiledPredictor, Tiling
from utils.upstream import select_device

FIGURES = ("AP", "AP50", "AP75", "AP_S", "AP_M", "R")


@dataclass
class Options(Ranged):
    """Command line of the benchmark."""

    weights: str = option("", "checkpoint to measure")
    data: str = option("", "data YAML with large images in its split val")
    imgsz: int = option(640, "pixels that a tile becomes", aliases=("--img",), least=1)
    plain: list[int] = option([640, 1280], "image sizes of validations without tiles", least=1)
    tile: str = option("640", "a tile's side in pixels of the images, or 'auto'")
    overlap: float = option(0.2, "least share of a tile that the next one shows again", least=0, most=0.9)
    batch_size: int = option(16, "tiles in a forward pass", aliases=("--batch",), least=1)
    speeds: list[int] = option(
        [128, 256, 640], "sides of the tiles whose speed is measured, seen as they are", least=32
    )
    rounds: int = option(5, "timed turns of each variant, after one that is not counted", least=1)
    device: str = option("", "cpu, or a GPU's number; empty chooses")
    output: str | None = option(None, "markdown file for the result; printed in any case")


def largest_image(options: Options, size: int, stride: int) -> Batch:
    """The largest image of the split val, as detection takes it."""
    annotations = read_annotations(load_data_config(options.data), "val")
    path = annotations.paths[int(annotations.sizes_wh.prod(1).argmax())]
    return collate([letterboxed_item(read_image(path), size, stride)])


def speed(options: Options, tile: int) -> list[str]:
    """Lines about the time for an image, tiles in batches against tiles one by one."""
    model = open_model(options.weights)
    size = check_image_size(tile, model.max_stride)
    predictor = Predictor(model, select_device(options.device), settings=NmsSettings(conf=0.25))
    batch = largest_image(options, size, model.max_stride)

    def detect(count: int) -> tuple[TiledPredictor, Timed]:
        tiled = TiledPredictor(predictor, Tiling(tile, options.overlap, full=False, batch_size=count), size)
        return tiled, lambda: tiled(batch)

    variants = {"one by one": detect(1), f"{options.batch_size} at a time": detect(options.batch_size)}
    times = take_turns({name: run for name, (_, run) in variants.items()}, options.rounds, predictor.device)
    assert batch.wholes[0] is not None
    height, width = batch.wholes[0].shape[:2]
    count = len(variants["one by one"][0].windows((width, height)))
    return table(f"An image of {width} x {height} px in {count} tiles of {tile} px, by tiles in a forward pass", times)


def accuracy(options: Options) -> list[str]:
    """Lines about COCO's figures with and without tiles."""
    common = {"weights": options.weights, "data": options.data, "device": options.device, "workers": 0}
    tiled = {"imgsz": options.imgsz, "tile": options.tile, "overlap": options.overlap, "batch_size": options.batch_size}
    variants: dict[str, dict[str, object]] = {
        **{f"plain, {size} px": {"imgsz": size, "batch_size": 1} for size in options.plain},
        "tiles and whole image, merged": tiled,
        "tiles, merged": tiled | {"full": False},
        "tiles, suppressed": tiled | {"full": False, "merge": "nms"},
    }
    lines = [
        f"### Validation, tiles of {options.tile} px as {options.imgsz} px",
        "",
        f"| variant | {' | '.join(FIGURES)} | ms an image |",
        "|---|" + "---|" * (len(FIGURES) + 1),
    ]
    for name, settings in variants.items():
        with tempfile.TemporaryDirectory() as folder:
            report = val.run(**common | settings, project=folder)
        cells = [f"{report.metrics.figures[key]:.4f}" for key in FIGURES]
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(report.evaluation.milliseconds.values()):.0f} |")
    return [*lines, ""]


def main(options: Options) -> None:
    """Measure all and print or write the tables."""
    flags = f"--weights {Path(options.weights).name} --data {Path(options.data).name} --img {options.imgsz}"
    command = f"python -m benchmarks.tiles {flags} --tile {options.tile} --batch {options.batch_size}"
    device = select_device(options.device)
    speeds = [line for tile in options.speeds for line in speed(options, tile)]
    lines = [*heading("Large images in tiles", command, device), *speeds, *accuracy(options)]
    print("\n".join(lines))
    if options.output:
        write_text_atomically(Path(options.output), "\n".join(lines))


if __name__ == "__main__":
    run_script(main, Options, "Measure what tiles gain and cost on large images.")
