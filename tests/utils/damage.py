"""Files damaged on purpose."""

import random
from collections.abc import Iterator
from pathlib import Path


def flipped_files(original: Path, damaged: Path, count: int) -> Iterator[Path]:
    """Write `original` to `damaged` with one byte changed, `count` times, each time another."""
    whole, rng = original.read_bytes(), random.Random(0)
    for _ in range(count):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        damaged.write_bytes(data)
        yield damaged
