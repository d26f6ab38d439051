"""What detection looks at: frames, and the sources that give them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

GROUP_BYTES = 64 << 20  # of a group's images, beyond which it takes no more


@dataclass(frozen=True)
class Frame:
    """An image to look at.

    Attributes:
        path: the file it is from; of a stream, a file name for its results, without suffix.
        image: (H, W, 3) BGR.
        index: its number in the video, from 0; 0 for an image.
        is_video: whether it is one of a sequence.
        fps: frames per second of those given, the video's own divided by the stride; 0 for an image.
        count: frames of the video that will be given, as the file claims; None if it does not say; 1 for an image.
        live: whether it is from a stream.
        dropped: frames of the stream that would have come before it, but were left out to stay live.
        address: where it is from if that is no file of this machine.
    """

    path: Path
    image: npt.NDArray[np.uint8]
    index: int = 0
    is_video: bool = False
    fps: float = 0.0
    count: int | None = 1
    live: bool = False
    dropped: int = 0
    address: str = ""

    @property
    def name(self) -> str:
        """What the user calls its source."""
        return self.address or str(self.path)

    @property
    def number(self) -> int | None:
        """Its number in the video, from 1; None for an image."""
        return self.index + 1 if self.is_video else None


@dataclass
class Source(ABC):
    """Frames from `files` (streams have the names of their results here), in order; a context manager.

    What goes wrong with one of them does not stop the others: it is logged, and remembered in `failures` and `notes`.
    """

    files: list[Path]
    failures: list[str] = field(default_factory=list)  # what could not be read, a line each
    notes: list[str] = field(default_factory=list)  # what could be read, but not to its end
    live = False  # whether frames pass by and must be looked at now

    @abstractmethod
    def groups(self, most: int) -> Iterator[list[Frame]]:
        """Give frames of one size together, no more than `most`; of streams the newest of each, however many."""

    def __iter__(self) -> Iterator[Frame]:
        for group in self.groups(1):
            yield from group

    def stop(self) -> None:  # noqa: B027 (files need not be stopped: their frames do not keep anybody waiting)
        """End the iteration soon; may be called from any thread."""

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def in_groups(frames: Iterable[Frame], most: int, *, mixed: bool = False) -> Iterator[list[Frame]]:
    """Gather runs of up to `most` frames of one size, or of any if `mixed`, fewer if they are large."""
    group: list[Frame] = []
    for frame in frames:
        if group and frame.image.shape != group[0].image.shape and not mixed:
            yield group
            group = []
        group.append(frame)
        full = len(group) == most or sum(one.image.nbytes for one in (*group, frame)) > GROUP_BYTES
        del frame  # or it lives on while the next is read
        if full:
            yield group
            group = []
    if group:
        yield group
