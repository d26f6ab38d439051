"""Images as a program has them, files, addresses, arrays, PIL images and tensors, all made RGB arrays."""

import http.client
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from torch import Tensor

from data.addresses import requestable, shown, web_opener
from data.images import decode_image, orientation, read_image, swap_red_and_blue
from utils.options import InputError

ImageInput: TypeAlias = str | Path | npt.NDArray[Any] | Image.Image | Tensor

MAX_BYTES = 50_000_000  # of an image from the network
SILENCE, PATIENCE = 10.0, 60.0  # seconds: longest without a byte, and for all of an image from the network
ROUNDING = 0.5 / 255  # how far from 0..1 a value may be that rounds to 8 bits
CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency, which is left out


@dataclass(frozen=True)
class Picture:
    """An image (H, W, 3) RGB, and the name of its file; "" if it has none."""

    image: npt.NDArray[np.uint8]
    name: str = ""


def read_picture(given: ImageInput) -> Picture:
    """Read an image in any of the forms in which a program may have it.

    Args:
        given: a file, an http(s) address, an array (H, W), (H, W, C) or (C, H, W) with RGB's order of channels, a PIL
            image, or a tensor (C, H, W); C is 1, 3 or 4, values are uint8 or floats in 0..1.

    Raises:
        InputError: it is none of these, or cannot be read.
    """
    if isinstance(given, str) and given.lower().startswith(("http://", "https://")):
        encoded = np.frombuffer(read_url(given), np.uint8)
        return Picture(swap_red_and_blue(decode_image(encoded, shown(given))), Path(urlsplit(given).path).name)
    if isinstance(given, str | Path):
        return Picture(swap_red_and_blue(read_image(Path(given).expanduser())), Path(given).name)
    if isinstance(given, Image.Image):
        return Picture(_from_pil(given), Path(str(getattr(given, "filename", ""))).name)
    if isinstance(given, Tensor):
        return Picture(_three_channels(_as_bytes(given), channels_first=True))
    if isinstance(given, np.ndarray):
        first = given.ndim == 3 and given.shape[0] in CHANNELS and given.shape[2] not in CHANNELS
        return Picture(_three_channels(_as_bytes(given), channels_first=first))
    raise InputError(
        f"an image of type {type(given).__name__}: expected a path, an http(s) address, a numpy array, a PIL image or a"
        " tensor"
    )


def read_url(url: str) -> bytes:
    """Read an http(s) address; other protocols are refused, in a redirection too.

    Raises:
        InputError: the server cannot be reached, refuses, falls silent, or sends too much or too little.
    """
    opener = web_opener(http=True)
    opener.addheaders = [("User-Agent", "yolov5-spd")]
    end = time.monotonic() + PATIENCE
    content = bytearray()
    try:
        with opener.open(requestable(url), timeout=SILENCE) as response:
            expected = response.length  # None if the server does not say
            while chunk := response.read1(1 << 16):
                content += chunk
                if len(content) > MAX_BYTES:
                    raise InputError(f"{shown(url)}: more than {MAX_BYTES // 1_000_000} MB, too much for an image")
                if time.monotonic() > end:
                    raise InputError(f"{shown(url)}: not here after {PATIENCE:g} seconds")
    except (OSError, http.client.HTTPException) as error:
        reason = str(error).strip("<>").removeprefix("urlopen error ")
        raise InputError(f"{shown(url)}: cannot be fetched: {' '.join(reason.split())}") from error
    if expected is not None and len(content) != expected:
        raise InputError(f"{shown(url)}: ended after {len(content)} of {expected} bytes")
    return bytes(content)


def _from_pil(given: Image.Image) -> npt.NDArray[np.uint8]:
    if given.mode[0] in "IF":  # Pillow would cut all values above 255 to 255
        raise InputError(f"a PIL image of mode {given.mode}: expected 8 bits a channel")
    try:
        turned = ImageOps.exif_transpose(given) if orientation(given) > 1 else given
        return np.array(turned.convert("RGB"))
    except OSError as error:  # the file is read only now
        raise InputError(f"a PIL image cannot be decoded: {error}") from error


def _as_bytes(given: npt.NDArray[Any] | Tensor) -> npt.NDArray[np.uint8]:
    """Values as uint8, of floats in 0..1 the nearest."""
    if isinstance(given, Tensor):
        floating = given.is_floating_point()
        given = (given.detach().float() if floating else given).cpu().numpy()  # numpy has no bfloat16
    shape, kind = " x ".join(map(str, given.shape)), given.dtype
    if not given.size:
        raise InputError(f"an image of {shape} values: it is empty")
    if kind == np.uint8:
        return given
    if not np.issubdtype(kind, np.floating):
        raise InputError(f"an image of {shape} values: expected uint8 or floats in 0..1, found {kind}")
    low, high = float(given.min()), float(given.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # not a number is neither
        raise InputError(f"an image of {shape} values: expected uint8 or floats in 0..1, found {low:g} to {high:g}")
    return (given * 255).round().astype(np.uint8)


def _three_channels(image: npt.NDArray[np.uint8], *, channels_first: bool) -> npt.NDArray[np.uint8]:
    """Bring grey, RGB or RGBA to (H, W, 3)."""
    last = np.moveaxis(image, 0, -1) if channels_first and image.ndim == 3 else image
    if last.ndim == 2:
        last = last[..., None]
    if last.ndim != 3 or last.shape[2] not in CHANNELS:
        batch = "; give several images as a list" if last.ndim == 4 else ""
        raise InputError(f"an image of shape {image.shape}: expected 2 dimensions, or 3 with 1, 3 or 4 channels{batch}")
    return np.ascontiguousarray(last[..., :3] if last.shape[2] > 1 else last.repeat(3, 2))
