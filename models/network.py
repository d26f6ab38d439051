"""What every network of this project, a detector or a classifier, says of itself."""

from typing import Any

from torch import nn


class Network(nn.Module):
    """A network that can be built again from its `config`.

    Attributes:
        config: plain values that its class builds the same network from.
        names: the class names.
        folded: a faster graph of the same layers, which `models.fold` makes; in a tuple, it is no submodule.
    """

    config: dict[str, Any]
    names: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.folded: tuple[nn.Module] | None = None

    @property
    def max_stride(self) -> int:
        """What an image's sides must be multiples of."""
        raise NotImplementedError
