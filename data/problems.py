"""What can be wrong with a data set: a `Problem` says what, in which file and line; `KINDS` says what that means."""

from typing import Literal, NamedTuple


class Kind(NamedTuple):
    """A kind of problem: an error if something is left out or makes figures wrong, and how a clean copy solves it.

    `solution` is empty where only a person can tell what is right.
    """

    severity: Literal["error", "warning"]
    title: str
    solution: str = ""


KINDS = {
    "split": Kind("error", "splits that cannot be read", "the split is left out"),
    "list-entry": Kind("error", "entries of image lists that name no image", "the entry is left out"),
    "image-unreadable": Kind("error", "images that cannot be read", "the image is left out"),
    "image-truncated": Kind("error", "images without their end", "the image is left out"),
    "image-size": Kind("error", "images of another size than stated", "boxes are cut at the image's edge"),
    "label-unreadable": Kind("error", "label files that cannot be read", "the image is left without objects"),
    "no-labels": Kind("error", "splits without any label file", "the images are left without objects"),
    "row": Kind("error", "objects that are not written as they should be", "the object is left out"),
    "class-range": Kind("error", "objects of a class without a name", "the object is left out"),
    "box-outside": Kind("error", "objects outside their image", "the object is left out"),
    "box-empty": Kind("error", "boxes of no size", "the object is left out"),
    "json-image": Kind("error", "images of a json that are not there", "the entry is left out"),
    "leakage": Kind("error", "images of one split that are in another too", "the earlier split loses the image"),
    "same-split": Kind("error", "splits made of the same files"),
    "box-over-edge": Kind("warning", "objects that hang over their image's edge", "the box is cut at the edge"),
    "box-duplicate": Kind("warning", "objects that are there twice", "the repetition is left out"),
    "box-two-classes": Kind("warning", "boxes that are there twice, with different classes"),
    "polygon-flat": Kind("warning", "polygons without area", "the enclosing box is written instead"),
    "image-unlabelled": Kind("warning", "images without labels, taken as background", "an empty label file is written"),
    "no-json": Kind("warning", "splits whose json is not there, read from label files"),
    "json-unlisted": Kind("warning", "images that the json does not list, left out", "the images are left out"),
    "label-without-image": Kind("warning", "label files without an image", "the file is left out"),
    "label-shared": Kind("warning", "images that share a label file"),
    "image-copy": Kind("warning", "images that are in their split twice", "the repetition is left out"),
    "class-unused": Kind("warning", "classes without an object"),
    "category": Kind("warning", "categories of a json without a class, left out", "their objects are left out"),
}


class Problem(NamedTuple):
    """One thing that is wrong; `kind` is a key of KINDS, `line` counts from 1 where the file has lines."""

    kind: str
    file: str
    what: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.what}"

    @property
    def is_error(self) -> bool:
        """Whether something is left out because of it, or figures would be wrong."""
        return KINDS[self.kind].severity == "error"
