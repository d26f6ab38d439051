"""The formulae of the weights and images that the reference figures were measured on."""

import zlib

import numpy as np
import torch
from torch import Tensor, nn


def formula_tensor(key: str, like: Tensor) -> Tensor:
    """The value that the reference figures were measured with, for a state_dict entry."""
    if key.endswith(("num_batches_tracked", "anchors", "anchor_grid")):
        return like
    wave = np.sin(0.37 * np.arange(like.numel(), dtype=np.float64) + zlib.crc32(key.encode()) % 1000)
    if key.endswith("running_var"):
        values = 1 + 0.5 * wave**2
    elif key.endswith("bn.weight"):
        values = 1 + 0.3 * wave
    elif key.endswith(("running_mean", "bias")):
        values = 0.1 * wave
    else:
        values = wave * np.sqrt(2 / np.prod(like.shape[1:]))
    return torch.from_numpy(values.reshape(like.shape)).to(like.dtype)


def fill_by_formula(model: nn.Module) -> nn.Module:
    """Give every weight and buffer its formula value."""
    model.load_state_dict({key: formula_tensor(key, value) for key, value in model.state_dict().items()})
    return model


def formula_images(*shape: int) -> Tensor:
    """The reference's batch of images."""
    return torch.from_numpy((np.sin(0.013 * np.arange(np.prod(shape))) + 1) / 2).reshape(shape).float()
