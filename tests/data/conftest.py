"""A data set of three images, and a site to download from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data import fetch
from tests.data.annotation_sets import SIZES, save
from tests.data.https_site import Site, serve


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A site over https; `fetch` tries again without a pause while it runs."""
    with pytest.MonkeyPatch.context() as monkeypatch, serve(monkeypatch) as running:
        monkeypatch.setattr(fetch, "PAUSE", 0.0)
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of three images without labels."""
    for name, size in SIZES.items():
        save(tmp_path / "images/train" / name, size)
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cat, dog, cow]\n")
    return tmp_path
