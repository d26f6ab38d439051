"""Reading a json piece by piece gives what the standard library gives, errors included, in little memory."""

import json
import random
import sys
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.json_stream import read_members
from utils.options import InputError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=20
)
CONTENT = {
    "info": {"year": 2017, "text": 'a "quote", a \\ and a 图 \U0001f600 \t'},
    "images": [{"id": 1, "size": [-1.5e-7, 1e300, 0]}, {"id": 22, "no": None, "deep": [[[]], {}]}, [], 123456, "x"],
    "empty": [],
    "flag": True,
    "number": -12.75,
    "annotations": [False, None, True, 1e5, ""],
}
CHUNKS = [1, 2, 7, 64, 1 << 16]


def content_of(path, chunk):
    return {
        key: list(value) if isinstance(value, Iterator) else value for key, value in read_members(path, chunk=chunk)
    }


@settings(max_examples=200, deadline=None)
@given(
    content=st.dictionaries(st.text(), VALUES, max_size=4),
    indent=st.sampled_from([None, 0, 2, "\t"]),
    is_ascii=st.booleans(),
    chunk=st.integers(1, 60),
)
def test_any_object(tmp_path_factory, content, indent, is_ascii, chunk):
    path = tmp_path_factory.getbasetemp() / "any.json"
    text = json.dumps(content, indent=indent, ensure_ascii=is_ascii)
    path.write_bytes(text.encode(errors="surrogatepass"))
    assert content_of(path, chunk) == content


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("text", [json.dumps(CONTENT), json.dumps(CONTENT, indent=1, ensure_ascii=False)])
def test_a_file_cut_off_anywhere(tmp_path, text, chunk):
    path = tmp_path / "cut.json"
    encoded = text.encode()
    for end in range(len(encoded)):
        path.write_bytes(encoded[:end])
        with pytest.raises(InputError) as caught:
            content_of(path, chunk)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    path.write_bytes(encoded + b" \r\n")
    assert content_of(path, chunk) == CONTENT


@pytest.mark.parametrize("chunk", CHUNKS)
def test_damage_is_told_as_the_standard_library_tells_it(tmp_path, chunk):
    path, rng = tmp_path / "damaged.json", random.Random(chunk)
    text = json.dumps(CONTENT, indent=1)
    refused = 0
    for _ in range(400):
        start = rng.randrange(len(text))
        new = rng.choice(["", *'{}[]",:\\ \n0-x\x01', "NaN", "\\ud800"])
        damaged = text[:start] + new + text[start + rng.randrange(3) :]
        path.write_text(damaged)
        fault, expected = "", None
        try:
            expected = json.loads(damaged)
        except json.JSONDecodeError as error:
            fault = str(error)
        if fault:
            refused += 1
            with pytest.raises(InputError) as caught:
                content_of(path, chunk)
            assert str(caught.value) == f"{path}: not a valid json: {fault}" or sys.version_info >= (3, 13), "new texts"
        else:
            assert repr(content_of(path, chunk)) == repr(expected)
    assert refused > 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2]", "expected keys and values, found a list"),
        (b" null ", "expected keys and values, found a NoneType"),
        (b'"text"', "expected keys and values, found a str"),
        (b"[1, 2] 3", "not a valid json: Extra data: line 1 column 8 (char 7)"),
        (b"{} {}", "not a valid json: Extra data: line 1 column 4 (char 3)"),
        (b"", "not a valid json: Expecting value: line 1 column 1 (char 0)"),
        (b'{"a": [], "b": 1, "a": 2}', "the key a is given twice"),
        (b'{"a": ' + b"[" * 100_000, "not a valid json: maximum recursion depth"),
        (b"[" * 100_000, "not a valid json: maximum recursion depth"),
        (b'{"a": ["b", "\xff"]}', "not a valid json: after character 0: not utf-8: invalid start byte"),
        (b'{"a": ["b", "\xc3', "not a valid json: after character 0: not utf-8: unexpected end of data"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not a valid json: Exceeds the limit"),
        (b"\x00\x01\x02\x03", "not a valid json: "),
    ],
)
def test_what_is_no_object(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        content_of(path, 1 << 20)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(InputError, match=f"{path}: not a valid json: "):
            content_of(path, 1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32-le"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "x.json"
    path.write_bytes(json.dumps(CONTENT, ensure_ascii=False).encode(encoding))
    assert content_of(path, 5) == CONTENT


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_what_is_left_of_an_array_is_passed_over(tmp_path, taken):
    path = tmp_path / "x.json"
    path.write_text('{"a": [1, [2], 3], "b": 4}')
    found = [
        (key, [next(value) for _ in range(taken)] if key == "a" else value)
        for key, value in read_members(path, chunk=1)
    ]
    assert found == [("a", [1, [2], 3][:taken]), ("b", 4)]
    path.write_text('{"a": [1, 2 3], "b": 4}')
    with pytest.raises(InputError, match="Expecting ',' delimiter"):
        list(read_members(path))


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "x.json"
    entry = json.dumps({"id": 1, "bbox": [1.5, 2.5, 3.5, 4.5], "segmentation": [[12.25] * 40]})
    path.write_text('{"annotations": [' + ",\n".join([entry] * 20_000) + "]}")
    assert path.stat().st_size > 6e6
    tracemalloc.start()
    count = sum(1 for _, entries in read_members(path, chunk=1 << 16) for _ in entries)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 1e6
