"""A headless browser on pages: Debian's `chromium` and `chromium-driver`, by Selenium."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from selenium.common.exceptions import JavascriptException, StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from common.storage.run_directory import RunDirectory
from deploy.pages.frame import Page
from deploy.pages.serving import PageServer, listen
from deploy.view.server import view_page
from deploy.view.watched import watched

SIZES = {"phone": (390, 844), "desk": (1400, 900)}
THEMES = ("light", "dark")
DATA = {
    "curves": "[data-drawn] .plot canvas",
    "episodes": "tr[data-id]",
    "memory": "[data-table='matrix'] .cell",
    "waits": ".track .phase",
    "state": "[data-run] table td",
}
"""What each section has where it has data."""
WAIT = 20.0


@contextmanager
def open_browser() -> Iterator[Chrome]:
    """A headless Chromium that logs its console and its requests. Where it is not installed the
    test is skipped; in continuous integration (CI=true) it fails."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        missing = "no browser: apt-get install chromium chromium-driver"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    options = Options()
    options.binary_location = binary
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = Chrome(options=options, service=Service(driver))
    try:
        yield opened
    finally:
        opened.quit()


@contextmanager
def page_served(page: Page, ended: threading.Event | None = None) -> Iterator[str]:
    """A page's server in a thread; its address. ended: what live updates of the page wait on."""
    socket, port = listen("127.0.0.1", 0, False)
    server = PageServer(page, "127.0.0.1", port, None, ended)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def served(*runs: RunDirectory) -> Iterator[str]:
    """The server of the page on runs in a thread; its address."""
    ended = threading.Event()
    with page_served(view_page(watched([run.path() for run in runs]), ended), ended) as address:
        yield address


def show(
    browser: Chrome, address: str, section: str, size: str = "desk", theme: str = "light"
) -> None:
    width, height = SIZES[size]
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"},
    )
    browser.get("about:blank")
    browser.get(f"{address}?theme={theme}#{section}")
    name = section.partition("?")[0]
    until(lambda: ask(browser, "document.getElementById('main').dataset.shown") == name)


def show_episode(browser: Chrome, address: str, name: str, *look: str) -> None:
    """One conversation, turn by turn. look: size and theme."""
    show(browser, address, f"episodes?id={name}", *look)
    shown = "document.getElementById('conversation').dataset.id"
    until(lambda: ask(browser, shown) == name)


def ask(browser: Chrome, expression: str) -> Any:
    return browser.execute_script(f"return {expression}")


def until(condition: Callable[[], Any]) -> None:
    ends = time.monotonic() + WAIT
    while time.monotonic() < ends:
        with suppress(JavascriptException, StaleElementReferenceException):
            if condition():
                return
        time.sleep(0.05)
    raise AssertionError("the page did not come to it in time")


def press(browser: Chrome, key: str) -> None:
    browser.find_element(By.TAG_NAME, "body").send_keys(key)


def count(browser: Chrome, selector: str) -> int:
    return len(browser.find_elements(By.CSS_SELECTOR, selector))


def errors(browser: Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def leave(browser: Chrome) -> None:
    """Leave the page that is open, and forget what it asked for and complained of: its server may
    be gone, and the page goes on to ask it for events."""
    browser.get("about:blank")
    errors(browser), requested(browser)


def requested(browser: Chrome) -> set[str]:
    """Addresses that the browser asked for since it was last asked."""
    found = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.add(message["params"]["request"]["url"])
    return found


def look_at_every_section(browser: Chrome, address: str, size: str, theme: str) -> None:
    """Each section has data and fits the width; nothing is wrong in the console, and no request
    leaves the page's own place."""
    for section, data in DATA.items():
        show(browser, address, section, size, theme)
        until(lambda data=data: count(browser, data))
        assert ask(browser, "document.documentElement.scrollWidth") <= SIZES[size][0]
        assert ask(browser, "document.documentElement.dataset.theme") == theme
        assert "null" not in browser.find_element(By.ID, "main").text.split("\n")
    assert errors(browser) == []
    own = (address, "about:", "data:")
    assert {url for url in requested(browser) if not url.startswith(own)} == set()
