"""A layer takes over the weights of its strided form."""

import pytest
import torch

from models.fold import depth_to_kernel
from models.inherit import kernel_to_depth


@pytest.mark.parametrize("scale", [2, 3])
def test_kernel_to_depth_undoes_depth_to_kernel(scale: int) -> None:
    weight = torch.rand(5, 3 * scale**2, 3, 1)
    torch.testing.assert_close(kernel_to_depth(depth_to_kernel(weight, scale), scale), weight)
