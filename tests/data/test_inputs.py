"""Images in every form a program may have them become the same RGB array, or are refused in a line that says why."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data import inputs
from data.inputs import read_picture, read_url
from tests.data.https_site import Site, serve
from utils.options import InputError

RGB = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
GREY = RGB[..., 0]
ALPHA = np.dstack((RGB, GREY))


def png(image: np.ndarray = RGB) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


FORMS = {
    "array": RGB,
    "mirrored view": RGB[:, ::-1][:, ::-1],
    "channels first": RGB.transpose(2, 0, 1),
    "with alpha": ALPHA,
    "floats": RGB / 255,
    "half floats": (RGB / 255).astype(np.float16),
    "PIL": Image.fromarray(RGB),
    "PIL with alpha": Image.fromarray(ALPHA),
    "tensor": torch.from_numpy(RGB.transpose(2, 0, 1).copy()),
    "float tensor": torch.from_numpy(RGB.transpose(2, 0, 1) / 255),
    "bfloat16 tensor": torch.from_numpy(RGB.transpose(2, 0, 1) / 255).bfloat16(),
    "tensor with a gradient": torch.from_numpy(RGB.transpose(2, 0, 1) / 255).requires_grad_(),
}
GREYS = {
    "array": GREY,
    "one channel": GREY[..., None],
    "one channel first": GREY[None],
    "PIL": Image.fromarray(GREY),
    "PIL of two colours": Image.fromarray(GREY > 100),
    "tensor": torch.from_numpy(GREY.copy()),
    "tensor of one channel": torch.from_numpy(GREY.copy())[None],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_colour_images(form: str):
    picture = read_picture(FORMS[form])
    assert picture.image.dtype == np.uint8
    assert picture.image.flags.c_contiguous
    assert picture.name == ""
    np.testing.assert_allclose(picture.image, RGB, atol=1 if form == "bfloat16 tensor" else 0)


@pytest.mark.parametrize("form", GREYS)
def test_forms_of_grey_images(form: str):
    expected = (GREY > 100) * np.uint8(255) if "two" in form else GREY
    np.testing.assert_array_equal(read_picture(GREYS[form]).image, np.dstack([expected] * 3))


def test_files_and_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "é 1.png"
    path.write_bytes(png())
    for given in (path, str(path), Image.open(path)):
        picture = read_picture(given)
        np.testing.assert_array_equal(picture.image, RGB)
        assert picture.name == path.name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_picture("~/é 1.png").image.shape == RGB.shape


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photos_are_turned_alike_from_a_file_and_from_pil(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(RGB).save(path, exif=exif)
    turned = np.rot90(RGB, {1: 0, 3: 2, 6: 3, 8: 1}[orientation])
    np.testing.assert_array_equal(read_picture(path).image, turned)
    np.testing.assert_array_equal(read_picture(Image.open(path)).image, turned)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("none.png", "none.png: cannot be read"),
        (Path(), "cannot be read"),
        (RGB.astype(int), "20 x 30 x 3 values: expected uint8 or floats in 0..1, found int64"),
        (GREY > 100, "found bool"),
        (RGB.astype(np.float32), "found 0 to 254"),
        (RGB / 255 - 0.5, "found -0.5 to"),
        (np.where(RGB > 9, RGB / 255, np.nan), "found nan to nan"),
        (np.zeros((0, 5, 3), np.uint8), "0 x 5 x 3 values: it is empty"),
        (RGB[None], "give several images as a list"),
        (RGB[..., :2], "(20, 30, 2): expected 2 dimensions, or 3 with 1, 3 or 4 channels"),
        (torch.zeros(2, 3, 8, 8), "give several images as a list"),
        (torch.zeros(8, 8, 3), "(8, 8, 3)"),
        (Image.fromarray(GREY.astype(np.uint16)), "mode I;16: expected 8 bits a channel"),
        (None, "type NoneType: expected a path"),
        (b"bytes", "type bytes"),
    ],
)
def test_what_is_no_image_is_refused(given: Any, text: str):
    with pytest.raises(InputError) as error:
        read_picture(given)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def web() -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as monkeypatch, serve(monkeypatch, scheme="http") as running:
        yield running


@pytest.mark.parametrize(
    ("name", "path", "behaviour"),
    [
        ("a.png", "/a.png", {}),
        ("unknown.png", "/unknown.png", {"tells_length": False}),
        ("a é.png?size=1", "/a%20%C3%A9.png?size=1", {}),
        ("redirect", "/redirect", {"location": "/a.png"}),
    ],
)
def test_an_image_from_the_network(web: Site, name: str, path: str, behaviour: dict[str, Any]):
    web.put("/a.png", png())
    web.put(path, png(), **behaviour)
    picture = read_picture(f"{web.address}/{name}")
    np.testing.assert_array_equal(picture.image, RGB)
    assert picture.name == name.partition("?")[0]


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        ({"statuses": [404]}, "cannot be fetched: HTTP Error 404"),
        ({"cuts": [100]}, "ended after 100 of "),
        (
            {"location": "ftp://127.0.0.1/a.png"},
            "a.png, which is not http or https: refused",
        ),
        ({"location": "file:///etc/hostname"}, "cannot be fetched: HTTP Error 302"),
        ({"location": "/a.png?key=1"}, "cannot be fetched: HTTP Error 302"),
        ({"pause": 1.0}, "cannot be fetched: timed out"),
    ],
    ids=["none", "cut", "ftp", "file", "loop", "silent"],
)
def test_a_server_that_fails(web: Site, behaviour: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inputs, "SILENCE", 0.4)
    assert_refused(web, text, **behaviour)


def test_an_image_that_comes_too_slowly(web: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inputs, "PATIENCE", 0.1)
    assert_refused(web, "not here after 0.1 seconds", pause=0.2)


def test_an_image_that_is_too_large(web: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inputs, "MAX_BYTES", 100)
    assert_refused(web, "more than 0 MB")


def assert_refused(web: Site, text: str, **behaviour):
    url, _ = web.put("/a.png?key=1", png(), **behaviour)
    with pytest.raises(InputError) as error:
        read_url(url)
    assert str(error.value).startswith(f"{web.address}/a.png: ")
    assert text in str(error.value)


def test_no_server():
    with pytest.raises(InputError, match=r"^http://127\.0\.0\.1:9/a\.png: cannot be fetched: .*refused$"):
        read_url("http://127.0.0.1:9/a.png?token=abc")
    with pytest.raises(InputError, match=r"^http://127\.0\.0\.1:9/a\.png: files are fetched without a name"):
        read_url("http://me:secret@127.0.0.1:9/a.png")
