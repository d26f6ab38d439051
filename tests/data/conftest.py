"""A site to download from, for the tests of data sets that come from the network."""

from collections.abc import Iterator

import pytest

from data import fetch
from tests.data.https_site import Site, serve


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A site over https; `fetch` tries again without a pause while it runs."""
    with pytest.MonkeyPatch.context() as monkeypatch, serve(monkeypatch) as running:
        monkeypatch.setattr(fetch, "PAUSE", 0.0)
        yield running
