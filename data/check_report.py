"""The report of a data check, as text to read and as plain values for check.json."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from data.figures import LEAST_SIDE, Figures
from data.problems import KINDS, Problem
from utils.anchors import GOOD_ENOUGH

_TINY_SHARE = 0.01  # of objects too small to be seen, above which a larger image size is advised


@dataclass(frozen=True)
class Report:
    """What a check found: the figures of each split, and all problems, sorted as KINDS is."""

    data: str
    imgsz: int
    cfg: str
    decoded: bool
    splits: dict[str, Figures]
    problems: list[Problem]

    @property
    def errors(self) -> int:
        """Number of problems that leave something out or make figures wrong."""
        return sum(problem.is_error for problem in self.problems)

    @property
    def summary(self) -> str:
        """The number of problems, in words."""
        return f"errors: {self.errors:,}, warnings: {len(self.problems) - self.errors:,}"

    def content(self) -> dict[str, Any]:
        """The report as mappings, lists, texts and numbers."""
        found = [{**problem._asdict(), "severity": KINDS[problem.kind].severity} for problem in self.problems]
        counts = {kind: len(problems) for kind, problems in self._by_kind()}
        return asdict(self) | {"problems": found, "counts": counts, "errors": self.errors}

    def text(self, limit: int) -> str:
        """The report with at most `limit` problems of a kind."""
        return "\n".join([*self._table(), *self._advice(), *self._told(limit), self.summary])

    def _by_kind(self) -> Iterator[tuple[str, list[Problem]]]:
        for kind, problems in groupby(self.problems, lambda problem: problem.kind):
            yield kind, list(problems)

    def _table(self) -> Iterator[str]:
        """The figures, a column for each split."""
        columns = [_cells(name, split, self.imgsz) for name, split in self.splits.items()]
        width = max(map(len, columns[0]))
        for label in columns[0]:
            yield f"{label:<{width}}" + "".join(f"{cells[label]:>20}" for cells in columns)

    def _advice(self) -> Iterator[str]:
        for name, split in self.splits.items():
            if split.tiny > _TINY_SHARE:
                share = f"{name}: {split.tiny:.0%} of the objects are under {LEAST_SIDE:g} px at --img {self.imgsz}"
                yield f"{share}: a detector hardly sees them, train at a larger size"
            if split.recall is not None and split.recall < GOOD_ENOUGH:
                yield f"{name}: {self.cfg}'s anchors fit {split.recall:.1%} of the objects: train.py will fit them anew"

    def _told(self, limit: int) -> Iterator[str]:
        for kind, problems in self._by_kind():
            yield f"{KINDS[kind].severity}: {KINDS[kind].title}: {len(problems):,}"
            yield from (f"    {problem}" for problem in problems[:limit])
            if len(problems) > limit:
                yield f"    ... and {len(problems) - limit:,} more in check.json"


def _cells(name: str, split: Figures, imgsz: int) -> dict[str, str]:
    """A split's column of the table."""
    return {
        "": name,
        "images": f"{split.images:,}",
        "  without objects": f"{split.empty:,}",
        "  different sizes": f"{split.different_sizes:,}",
        "  longer side, px": _spread(split.longer_sides),
        "objects": f"{split.boxes:,}",
        "  with a polygon": f"{split.polygons:,}",
        "  crowd regions besides": f"{split.crowd:,}",
        "  most in an image": f"{split.most:,}",
        "  shorter side, px": _spread(split.shorter_sides),
        "  small/medium/large, %": _shares(split.bands),
        f"  the same at {imgsz} px, %": _shares(split.bands_at_size),
        f"  under {LEAST_SIDE:g} px at {imgsz} px, %": f"{100 * split.tiny:.1f}",
        "  fit by an anchor, %": "-" if split.recall is None else f"{100 * split.recall:.1f}",
    }


def _spread(values: Sequence[float]) -> str:
    """The least, the median and the greatest, as `figures` gives them."""
    return " .. ".join(f"{value:.0f}" for value in values) or "-"


def _shares(bands: dict[str, float]) -> str:
    return " / ".join(f"{100 * share:.0f}" for share in bands.values())
