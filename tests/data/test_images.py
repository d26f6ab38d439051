"""Image files: sizes, depths and orientations as the decoder has them; damaged ones told from those of use."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data.images import read_header, read_image, silent_opencv
from tests.data.annotation_sets import save
from utils.options import InputError


def picture() -> np.ndarray:
    gradient = np.linspace(0, 255, 64 * 48 * 3).reshape(48, 64, 3)
    return gradient.astype(np.uint8)


@pytest.mark.parametrize("missing", [2, 10, 300])
def test_a_jpeg_without_its_end_gives_what_there_is(tmp_path: Path, missing: int) -> None:
    encoded = cv2.imencode(".jpg", picture())[1].tobytes()
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded[:-missing])
    assert read_header(path) == (64, 48, False)
    found = read_image(path)
    assert found.shape == (48, 64, 3)
    assert np.abs(found[:8].astype(int) - picture()[:8]).mean() < 10


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_file_cut_before_its_pixels_is_refused(tmp_path: Path, suffix: str) -> None:
    encoded = cv2.imencode(suffix, picture())[1].tobytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(encoded[:40])
    with pytest.raises(InputError, match="cut") as caught:
        read_header(path)
    assert "\n" not in str(caught.value)


def test_whole_files_are_not_decoded_for_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".png", ".jpg", ".bmp", ".webp", ".tif"):
        cv2.imwrite(str(tmp_path / f"whole{suffix}"), picture())
    monkeypatch.setattr(cv2, "imdecode", None)
    assert {read_header(path) for path in tmp_path.iterdir()} == {(64, 48, True)}


def test_an_image_too_large_for_pillow_has_the_size_that_opencv_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2.imwrite(str(tmp_path / "large.png"), picture())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_header(tmp_path / "large.png") == (64, 48, True)


def test_an_image_too_large_for_opencv_is_told(tmp_path: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 30_000, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path = tmp_path / "huge.png"
    path.write_bytes(start + b"\0\0\0\0IDAT\0\0\0\0\0\0\0\0IEND\xae\x42\x60\x82")
    with pytest.raises(InputError, match=r"huge\.png: has more pixels than OpenCV decodes; set OPENCV_IO_MAX"):
        read_image(path)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_a_png_with_much_beside_its_pixels_is_read(tmp_path: Path, name: bytes) -> None:
    encoded = cv2.imencode(".png", picture())[1].tobytes()
    path = tmp_path / "talkative.png"
    path.write_bytes(encoded[:33] + chunk(name, b"note\0\0" + zlib.compress(bytes(2_000_000))) + encoded[33:])
    assert read_header(path) == (64, 48, True)


def test_a_png_with_half_a_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">II", 64, 48)) + chunk(b"IEND", b""))
    with pytest.raises(InputError, match=r"half\.png: "):
        read_header(path)


@pytest.mark.parametrize("tag", [256, 257, 274])
@pytest.mark.parametrize("kind", range(14))
def test_a_tiff_with_a_mistyped_size_or_orientation_is_read_or_refused(tmp_path: Path, tag: int, kind: int) -> None:
    path = tmp_path / "mistyped.tif"
    Image.fromarray(picture()).save(path, tiffinfo={274: 1})
    encoded = bytearray(path.read_bytes())
    entry = encoded.index(struct.pack("<HH", tag, 3 if tag == 274 else 4))
    encoded[entry + 2] = kind
    path.write_bytes(encoded)
    try:
        assert read_header(path) == (64, 48, True)
    except InputError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017 - either is right


@pytest.mark.parametrize(
    ("suffix", "orientation"), [(s, o) for s in ("jpg", "png", "webp", "tif") for o in (1, 3, 6, 8)]
)
def test_sizes_are_those_of_the_decoder(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"x.{suffix}"
    save(path, (40, 20), exif=exif)
    height, width = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).shape[:2]
    assert read_header(path) == (width, height, True)
    assert (width > height) == (orientation < 5)


def test_damaged_exif_says_nothing(tmp_path):
    save(tmp_path / "x.jpg", (40, 20), exif=b"Exif\0\0garbage")
    assert read_header(tmp_path / "x.jpg") == (40, 20, True)


def test_read_image_turns_by_exif_and_takes_any_name_and_depth(tmp_path):
    path = tmp_path / "Bild mit Ümläut 図.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:, :20] = 255, 0, 0  # red, in RGB, on the left
    Image.fromarray(upright).save(path, exif=exif, quality=95)
    image = read_image(path)
    assert image.shape == (60, 40, 3)
    np.testing.assert_allclose(image[5, 20], (0, 0, 254), atol=6)  # BGR, and the left has become the top
    deep = tmp_path / "grey16.png"
    cv2.imwrite(str(deep), np.full((5, 7), 257 * 90, np.uint16))
    assert read_image(deep).dtype == np.uint8
    assert (read_image(deep) == 90).all()
    assert read_image(deep).shape == (5, 7, 3)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_read_image_names_a_file_it_cannot_read(tmp_path, content):
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.png"):
        read_image(path)


def test_opencv_is_silent_until_the_last_of_overlapping_blocks_ends() -> None:
    level = cv2.utils.logging.getLogLevel()
    first, second = silent_opencv(), silent_opencv()  # as two threads enter and leave them
    for entered in (first, second):
        entered.__enter__()
    for left, expected in ((first, cv2.utils.logging.LOG_LEVEL_SILENT), (second, level)):
        left.__exit__(None, None, None)
        assert cv2.utils.logging.getLogLevel() == expected
