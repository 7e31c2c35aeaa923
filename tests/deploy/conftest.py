"""A browser for tests of pages, and a run that was watched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome

from tests.browser import leave, open_browser
from tests.observed_run import Observed, observed_run


@pytest.fixture(scope="session")
def chrome() -> Iterator[Chrome]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def browser(chrome: Chrome) -> Chrome:
    """The browser of all tests, which has left the page of the one before."""
    leave(chrome)
    return chrome


@pytest.fixture(scope="session")
def observed(
    tmp_path_factory: pytest.TempPathFactory, ray_local: None, chrome: Chrome
) -> Iterator[Observed]:
    with observed_run(tmp_path_factory.mktemp("observed"), chrome) as run:
        yield run
