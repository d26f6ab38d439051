"""How many augmented training images a second the loader gives; prints the figure, an epoch to a line.

    python benchmarks/loading.py --data mydata.yaml --workers 2

Run by its path, it measures the code that PYTHONPATH names, which may be another checkout's: so `benchmarks.epoch`
compares two. Without --data it makes JPEGs of 640 x 480 px, about as heavy as photographs.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from data.annotations import Annotations, read_annotations
from data.augment import Augmentation
from data.config import load_data_config
from data.dataset import DetectionDataset
from data.loader import make_loader

USUAL = Augmentation(hsv_h=0.015, hsv_s=0.7, hsv_v=0.4, translate=0.1, scale=0.5, fliplr=0.5, mosaic=1.0)


def make_photographs(folder: Path, count: int, objects: int) -> Path:
    """Write pictures with the roughness of photographs, some 130 kB each, and their labels; returns the data YAML."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for number in range(count):
        coarse = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
        grain = cv2.resize(rng.normal(0, 16, (240, 320, 3)), (640, 480))
        cv2.imwrite(str(folder / f"images/{number}.jpg"), np.clip(coarse + grain, 0, 255).astype(np.uint8))
        rows = np.column_stack(
            (rng.integers(0, 80, objects), rng.uniform(0.2, 0.8, (objects, 2)), np.full((objects, 2), 0.1))
        )
        text = "".join(f"{int(row[0])} {row[1]:.4f} {row[2]:.4f} {row[3]:.4f} {row[4]:.4f}\n" for row in rows)
        (folder / f"labels/{number}.txt").write_text(text)
    data = folder / "data.yaml"
    data.write_text(f"train: images\nval: images\nnames: [{', '.join(f'c{label}' for label in range(80))}]\n")
    return data


def repeated(table: Annotations, times: int) -> Annotations:
    """The same images and boxes over and over, as if there were so many more."""
    counts = np.tile(np.diff(table.starts), times)
    return replace(
        table,
        paths=list(table.paths) * times,
        sizes_wh=np.tile(table.sizes_wh, (times, 1)),
        image_ids=np.arange(len(counts)),
        starts=np.concatenate(([0], np.cumsum(counts))),
        classes=np.tile(table.classes, times),
        boxes=np.tile(table.boxes, (times, 1)),
        areas=np.tile(table.areas, times),
        crowd=np.tile(table.crowd, times),
        polygons=table.polygons[:0],
        polygon_starts=np.zeros(len(table.classes) * times + 1, np.int64),
    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description="Images a second.")
    parser.add_argument("--data", help="data YAML; made when not given")
    parser.add_argument("--img", type=int, default=640)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batches", type=int, default=0, help="of an epoch, all when 0")
    parser.add_argument("--objects", type=int, default=7, help="in a made image")
    parser.add_argument("--repeat", type=int, default=1, help="how often each image is in the set")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or make_photographs(Path(folder), 128, options.objects)
        table = repeated(read_annotations(load_data_config(data), "train"), options.repeat)
        dataset = DetectionDataset(table, options.img, augmentation=USUAL)
        loader = make_loader(dataset, batch_size=options.batch, workers=options.workers, train=True)
        for epoch in range(options.epochs):
            loader.set_epoch(epoch)
            start, images = time.perf_counter(), 0
            for number, batch in enumerate(loader, 1):
                images += len(batch)
                if number == options.batches:
                    break
            sys.stdout.write(f"{images / (time.perf_counter() - start):.2f}\n")


if __name__ == "__main__":
    main()
