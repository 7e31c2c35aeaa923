"""A browser for tests of pages, and a run that was watched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome

from tests.browser import open_browser
from tests.observed_run import Observed, observed_run


@pytest.fixture(scope="session")
def browser() -> Iterator[Chrome]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def observed(
    tmp_path_factory: pytest.TempPathFactory, ray_local: None, browser: Chrome
) -> Iterator[Observed]:
    with observed_run(tmp_path_factory.mktemp("observed"), browser) as run:
        yield run
