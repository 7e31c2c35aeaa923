"""The page and the report of a run that was really trained, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from deploy.report import write_report
from tests.browser import (
    SIZES,
    THEMES,
    ask,
    count,
    errors,
    look_at_every_section,
    press,
    served,
    show,
    show_episode,
    until,
)
from tests.observed_run import ITERATIONS, STEPS, Observed

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def page(observed: Observed) -> Iterator[str]:
    with served(observed.directory) as address:
        yield address


@pytest.fixture(scope="module")
def report(observed: Observed) -> str:
    return Path(write_report(observed.directory)).as_uri()


@pytest.fixture(scope="module")
def recorded(observed: Observed) -> list[dict[str, Any]]:
    """Rows of the Parquet files, as any reader of Parquet sees them."""
    folder = Path(observed.directory.path("episodes"))
    return pyarrow.dataset.dataset(folder, format="parquet").to_table().to_pylist()


def test_live_updates_of_the_run_arrived(observed: Observed) -> None:
    steps = [
        int(number) for head in observed.page.heads for number in re.findall(r"step (\d+)", head)
    ]
    assert steps == sorted(steps)
    assert len(set(steps)) >= 3
    assert steps[-1] == 4 * STEPS + ITERATIONS
    assert observed.page.episodes == sorted(observed.page.episodes)
    # On a quick machine all iterations are over between two looks.
    assert observed.page.episodes[0] == 0
    assert observed.page.episodes[-1] == ITERATIONS * 7
    assert observed.page.errors == []


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES)
def test_every_section_of_page_and_report_has_data(
    browser: Chrome, page: str, report: str, size: str, theme: str
) -> None:
    for address in (page, report):
        look_at_every_section(browser, address, size, theme)


def words(text: str) -> str:
    """Lower case, without punctuation, and with a space around each word."""
    return " ".join(["", *re.findall(r"[^\W_]+", text.casefold()), ""])


def named(fact: dict[str, Any], turn: dict[str, Any]) -> bool:
    return words(fact["value"]) in words(turn["answer"])


def recalled(episode: dict[str, Any]) -> int:
    return sum(named(fact, turn) for turn in episode["turns"][1:] for fact in turn["facts"])


def test_told_and_recalled_facts_are_those_of_the_parquet_file(
    browser: Chrome, page: str, report: str, recorded: list[dict[str, Any]]
) -> None:
    latest = recorded[-40:]  # those that the report has
    for episode in [*sorted(latest, key=recalled, reverse=True)[:2], latest[-1]]:
        for address in (page, report):
            show_episode(browser, address, episode["id"])
            assert_marked_as_recorded(browser, episode)


def assert_marked_as_recorded(browser: Chrome, episode: dict[str, Any]) -> None:
    turns = episode["turns"]
    told = {(fact["said_in"], words(fact["value"])) for turn in turns for fact in turn["facts"]}
    assert told
    for number, turn in enumerate(turns):
        card = browser.find_element(By.CSS_SELECTOR, f"[data-turn='{number}']")
        marks = [mark.text for mark in card.find_elements(By.CSS_SELECTOR, "mark.told .foreign")]
        assert {words(mark) for mark in marks} == {value for at, value in told if at == number}
        shown = [
            (each.get_attribute("data-fact"), each.get_attribute("data-state"))
            for each in card.find_elements(By.CSS_SELECTOR, "[data-fact]")
        ]
        facts = turn["facts"] if number else []
        assert shown[: len(facts)] == [
            (fact["value"], "recalled" if named(fact, turn) else "missed") for fact in facts
        ]
        for value, state in shown[len(facts) :]:
            assert state == "wrong"
            assert words(str(value)) in words(turn["answer"])
    layers, slots = 2, 6
    assert [len(each) for each in episode["memory_change"]] == [layers] * len(turns)
    cells = count(browser, "[data-heat] .slots [data-value]")
    assert cells == layers * slots * len(turns)


def test_the_keyboard_is_enough(browser: Chrome, page: str) -> None:
    show(browser, page, "state")
    for key, name in zip("12345", ("curves", "episodes", "memory", "waits", "state"), strict=True):
        press(browser, key)
        until(
            lambda name=name: ask(browser, "document.getElementById('main').dataset.shown") == name
        )
    press(browser, "2")
    until(lambda: count(browser, "tr[data-id]"))
    press(browser, "j")
    first = ask(browser, "document.querySelector('tr[data-id]').dataset.id")
    until(lambda: ask(browser, "document.getElementById('conversation').dataset.id") == first)
    press(browser, Keys.ESCAPE)
    until(lambda: count(browser, "tr[aria-selected]") == 0)
    assert errors(browser) == []
