"""What is wrong with a data set: what its readers report, and what only a look at all its files and splits shows.

Nothing is written. Images are decoded and compared in threads; of files, only those are read in full that are alike in
size and beginning.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations
from pathlib import Path

import numpy as np

from data.annotations import Annotations, read_annotations
from data.config import DataConfig
from data.files import Progress, find_images, label_path, map_chunks, unreadable, walk
from data.images import is_image, read_image, silent_opencv
from data.path_list import PathList
from data.problems import KINDS, Problem
from utils.options import InputError

Bars = Callable[[str], AbstractContextManager[Progress]]  # shows the progress of the work that the text names

_NO_LABELS = {"classes.txt"}  # what labelling programs write beside labels
_BEGINNING = 1 << 14  # bytes of two images that hardly ever agree
_THREADS = os.cpu_count() or 1
_PER_CALL = 16  # images that a thread decodes or hashes at a time


@dataclass(frozen=True)
class Examination:
    """The tables of the splits that can be read, all problems, and the images that a clean copy leaves out."""

    tables: dict[str, Annotations]
    problems: list[Problem]
    left_out: dict[str, set[Path]]


def examine(config: DataConfig, *, decode: bool, bars: Bars) -> Examination:
    """Read all splits of a data set and look for what is wrong.

    Raises:
        InputError: no split can be read.
    """
    images, tables, problems = _read_splits(config, bars)
    keys, damaged = _content_keys({path for table in tables.values() for path in table.paths}, bars)
    if decode:
        with bars("decoding") as show, silent_opencv():
            damaged += _undecodable(tables, show)
    repetitions = list(_repetitions(config, tables, keys))
    problems += [
        *(problem for table in tables.values() for problem in table.problems),
        *chain.from_iterable(_unlabelled(config, split, table) for split, table in tables.items()),
        *_stray_labels(config, images),
        *_shared_labels(config, images),
        *damaged,
        *(problem for _, problem in repetitions),
        *_unused_classes(config, tables),
    ]
    bad = {Path(problem.file) for problem in problems if problem.kind in ("image-unreadable", "image-truncated")}
    left_out = {split: set(bad) for split in tables}
    for split, problem in repetitions:
        if KINDS[problem.kind].solution:
            left_out[split].add(Path(problem.file))
    order = {kind: number for number, kind in enumerate(KINDS)}
    unique = dict.fromkeys(problems)  # splits may share files
    problems = sorted(unique, key=lambda problem: (order[problem.kind], problem.file, problem.line or 0))
    return Examination(tables, problems, left_out)


def _read_splits(config: DataConfig, bars: Bars) -> tuple[dict[str, PathList], dict[str, Annotations], list[Problem]]:
    """The images and the tables of the splits, and the splits that cannot be read."""
    images: dict[str, PathList] = {}
    tables: dict[str, Annotations] = {}
    problems = []
    for split in config.splits:
        try:
            images[split], _ = find_images(config, split)
            with bars(f"{split}: labels") as show:
                tables[split] = read_annotations(config, split, progress=show, refuse_nameless=False)
        except InputError as error:
            problems.append(Problem("split", str(config.source), str(error).removeprefix(f"{config.source}: ")))
    if not tables:
        reason = problems[0] if problems else f"{config.source}: expected a split train, val or test"
        raise InputError(str(reason))
    return images, tables, problems


def _unlabelled(config: DataConfig, split: str, table: Annotations) -> Iterator[Problem]:
    """Images without a label file; one problem if that is all of a split's, which often lie elsewhere."""
    if split in config.annotations:
        return
    empty = [table.paths[index] for index in np.flatnonzero(table.counts == 0).tolist()]
    missing = [image for image in empty if not label_path(image).exists()]
    if len(missing) == len(table):
        place = f"the first was looked for as {label_path(missing[0])}"
        yield Problem(
            "no-labels", str(config.source), f"{split}: none of {len(table)} images has a label file; {place}"
        )
        return
    yield from (Problem("image-unlabelled", str(image), f"no label file {label_path(image)}") for image in missing)


def _text_images(config: DataConfig, images: Mapping[str, Sequence[Path]]) -> list[Path]:
    """The images of the splits whose labels are text files, each once."""
    return sorted({path for split, paths in images.items() if split not in config.annotations for path in paths})


def _stray_labels(config: DataConfig, images: Mapping[str, Sequence[Path]]) -> Iterator[Problem]:
    """Label files in the folders of the splits' labels to which no image belongs, be it of a split or not."""
    folders = {path.parent for path in _text_images(config, images)}
    files = [file for folder in folders if folder.is_dir() for file in folder.iterdir()]
    known = {label_path(file) for file in files if is_image(file.name)}
    known.update(*config.splits.values())  # lists of images
    labels = {label for folder in map(_label_folder, folders) if folder.is_dir() for label in folder.iterdir()}
    for split in images.keys() - config.annotations.keys():
        for entry in config.splits[split]:
            below = _label_folder(entry)
            if entry.is_dir() and below != entry and below.is_dir():
                labels.update(map(Path, walk(str(below), _is_label)))
    for label in labels - known:
        if _is_label(label.name):
            yield Problem("label-without-image", str(label), "there is no image of this name")


def _label_folder(images: Path) -> Path:
    return label_path(images / "any.jpg").parent


def _is_label(name: str) -> bool:
    return name.endswith(".txt") and name not in _NO_LABELS


def _shared_labels(config: DataConfig, images: Mapping[str, Sequence[Path]]) -> Iterator[Problem]:
    """Images that differ in their suffix alone and so have the labels of another."""
    first: dict[Path, Path] = {}
    for image in _text_images(config, images):
        other = first.setdefault(label_path(image), image)
        if other != image:
            yield Problem("label-shared", str(image), f"has the label file of {other.name}")


def _undecodable(tables: Mapping[str, Annotations], progress: Progress) -> list[Problem]:
    """Images that cannot be decoded, or not as their header says."""
    sizes: dict[Path, list[int]] = {}
    for table in tables.values():
        sizes.update(zip(table.paths, table.sizes_wh.tolist(), strict=True))

    def look(paths: Sequence[Path]) -> list[Problem]:
        found = (_decoding_problem(path, sizes[path]) for path in paths)
        return [problem for problem in found if problem is not None]

    return list(chain.from_iterable(map_chunks(look, list(sizes), progress, threads=_THREADS, size=_PER_CALL)))


def _decoding_problem(path: Path, expected_wh: Sequence[int]) -> Problem | None:
    try:
        height, width, _ = read_image(path).shape
    except InputError as error:
        return unreadable(path, error)
    if [width, height] == expected_wh:
        return None
    stated = f"{expected_wh[0]}x{expected_wh[1]}"
    return Problem("image-unreadable", str(path), f"its header says {stated} pixels, it has {width}x{height}")


def _content_keys(paths: Iterable[Path], bars: Bars) -> tuple[dict[Path, str], list[Problem]]:
    """Hashes of the files that have another's content, and the files that cannot be read.

    Each look is at those files alone that are alike so far.
    """
    keys = dict.fromkeys(paths, "")
    problems: list[Problem] = []
    for look in (_size, _hash_of_beginning, _hash_of_all):
        extend = partial(_extend, keys, problems, look)
        with bars("looking for copies") as show:
            map_chunks(extend, sorted(keys), show, threads=_THREADS, size=_PER_CALL)
        shared = Counter(keys.values())
        keys = {path: key for path, key in keys.items() if shared[key] > 1}
    return keys, problems


def _extend(keys: dict[Path, str], problems: list[Problem], look: Callable[[Path], str], paths: Sequence[Path]) -> None:
    """Add to the keys of files what a look at them tells."""
    for path in paths:
        try:
            keys[path] += look(path)
        except OSError as error:
            keys[path] = str(path)
            problems.append(Problem("image-unreadable", str(path), f"cannot be read: {error.strerror}"))


def _size(path: Path) -> str:
    return f"{path.stat().st_size} "


def _hash_of_beginning(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.blake2b(file.read(_BEGINNING)).hexdigest()


def _hash_of_all(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes()).hexdigest()


def _repetitions(
    config: DataConfig, tables: Mapping[str, Annotations], keys: Mapping[Path, str]
) -> Iterator[tuple[str, Problem]]:
    """Images that are in their split twice or in a later split too, each with the split that should lose it."""
    groups: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for split, table in tables.items():
        for path in table.paths:
            groups[keys.get(path) or str(path)][split].append(path)
    same = set()
    for first, second in combinations(tables, 2):
        if _are_the_same(tables[first], tables[second], keys):  # as the YAML wants it
            same.add((first, second))
            shared = sum(first in group and second in group for group in groups.values())
            yield first, Problem("same-split", str(config.source), f"{first} and {second} share {shared} images")
    for group in groups.values():
        last = next(reversed(group))
        for split, (image, *copies) in group.items():
            yield from ((split, Problem("image-copy", str(copy), f"the same image as {image}")) for copy in copies)
            if split != last and (split, last) not in same:
                what = f"in {split}, and as {group[last][0]} in {last}"
                yield split, Problem("leakage", str(image), what)


def _are_the_same(a: Annotations, b: Annotations, keys: Mapping[Path, str]) -> bool:
    """Whether a split has all files of another, or the same contents."""
    files = set(a.paths), set(b.paths)
    if files[0] <= files[1] or files[1] <= files[0]:
        return True
    contents = [{keys.get(path) or str(path) for path in paths} for paths in files]
    return contents[0] == contents[1]


def _unused_classes(config: DataConfig, tables: Mapping[str, Annotations]) -> Iterator[Problem]:
    counts = {split: np.bincount(table.classes, minlength=config.nc) for split, table in tables.items()}
    totals = np.sum(list(counts.values()), 0)
    for index, name in enumerate(config.names):
        where = "any split" if not totals[index] else "train"
        if not totals[index] or ("train" in counts and not counts["train"][index]):
            yield Problem("class-unused", str(config.source), f"class {index} '{name}' has no object in {where}")
