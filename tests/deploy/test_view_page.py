"""The page and the report of a run in a real browser: at phone and desk width, light and dark."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import MetricsWriter
from common.telemetry.metrics import Metrics
from deploy.report import report_html
from deploy.view.answers import known_values
from deploy.view.server import view_page
from deploy.view.watched import watched
from reward_service.components.recall import values_named
from rollout.journal.journal import Journal
from rollout.journal.reader import find_episode
from tests.browser import (
    DATA,
    SIZES,
    THEMES,
    ask,
    count,
    errors,
    look_at_every_section,
    page_served,
    press,
    requested,
    served,
    show,
    show_episode,
    until,
)
from tests.watched_runs import HOSTILE, begin, long_run, record_iteration, watched_run

pytestmark = [pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return watched_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(run: RunDirectory) -> Iterator[str]:
    with served(run) as address:
        yield address


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES)
def test_every_section_has_data_and_fits(browser: Chrome, page: str, size: str, theme: str) -> None:
    look_at_every_section(browser, page, size, theme)


def test_an_episode_takes_one_line_of_the_list(browser: Chrome, page: str) -> None:
    """Steps such as "up to 16" have spaces."""
    show(browser, page, "episodes")
    until(lambda: count(browser, DATA["episodes"]))
    rows = browser.find_elements(By.CSS_SELECTOR, DATA["episodes"])
    assert any("up to 16" in row.text for row in rows)
    assert max(row.size["height"] for row in rows) < 1.5 * min(row.size["height"] for row in rows)
    assert min(row.size["height"] for row in rows) < 50


def test_marked_facts_agree_with_the_recorded_episode(
    browser: Chrome, page: str, run: RunDirectory
) -> None:
    for name in ("1-000004-2", "1-000004-3"):
        episode = find_episode(run, name).episode
        show_episode(browser, page, name)
        for number, turn in enumerate(episode.turns):
            if not number or not turn.facts:
                continue
            right, wrong = values_named(turn, known_values(episode.turns))
            states = [
                each.get_attribute("data-state")
                for each in browser.find_elements(
                    By.CSS_SELECTOR, f"[data-turn='{number}'] [data-fact]"
                )
            ]
            expected = ["recalled" if right else "missed", *["wrong"] * len(wrong)]
            assert states == expected
        assert "Rex" in browser.find_element(By.CSS_SELECTOR, "[data-turn='1'] mark.told").text
    command = browser.find_element(By.ID, "replay").text
    assert command == f"engram replay {run.path()} 1-000004-3"


def test_the_change_of_memory_is_that_of_the_recorded_episode(
    browser: Chrome, page: str, run: RunDirectory
) -> None:
    for name in ("1-000004-0", "1-000004-1"):
        changes = find_episode(run, name).episode.memory_change
        for theme in THEMES:
            show_episode(browser, page, name, "phone", theme)
            for number, layers in enumerate(changes):
                cells = browser.find_elements(By.CSS_SELECTOR, f"[data-heat='{number}'] .slots *")
                values = [value for slots in layers for value in slots]
                shown = [float(cell.get_attribute("data-value") or "nan") for cell in cells]
                assert shown == pytest.approx(values)
                shades = [opacity(cell.value_of_css_property("background-color")) for cell in cells]
                assert np.corrcoef(values, shades)[0, 1] > 0.99, "more change, a stronger shade"
            assert count(browser, "[data-heat]") == len(changes)
            assert ask(browser, "document.documentElement.scrollWidth") <= SIZES["phone"][0]


HEIGHTS = """
const canvas = document.querySelector("[data-held-out] canvas"), wanted = frame.colour("c0");
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
const { data, width, height } = pixels;
const found = new Map();
for (let at = 0; at < data.length; at += 4) {
  const hex = "#" + [0, 1, 2].map((part) => data[at + part].toString(16).padStart(2, "0")).join("");
  if (hex !== wanted || data[at + 3] < 255) continue;
  const y = Math.floor(at / 4 / width);
  found.set(y, (found.get(y) || 0) + 1);
}
return [[...found.entries()], height];
"""
"""Rows of pixels of the chart that have the first curve's colour, with how many each."""


@pytest.mark.parametrize("theme", THEMES)
def test_held_out_recall_and_its_control_are_curves(browser: Chrome, page: str, theme: str) -> None:
    """Recall stays at 0.7 with memory, at 0.1 without: two level lines, one of dashes."""
    show(browser, page, "memory", theme=theme)
    until(lambda: count(browser, "[data-held-out] canvas"))
    rows, _ = browser.execute_script(HEIGHTS)
    lines: list[dict[int, int]] = []
    for row, pixels in sorted(rows):
        if not lines or row > max(lines[-1]) + 1:
            lines.append({})
        lines[-1][row] = pixels
    assert len(lines) == 2, "kept above, erased below"
    box = browser.find_element(By.CSS_SELECTOR, "[data-held-out] .u-over").size["height"]
    kept, erased = (np.average(list(line), weights=list(line.values())) for line in lines)
    assert erased - kept == pytest.approx(0.6 * box, abs=3), "on a scale from 0 to 1"
    assert max(lines[1].values()) < 0.9 * max(lines[0].values()), "the control has dashes"
    legend = browser.find_element(By.CSS_SELECTOR, "[data-held-out] .legend").text
    assert "all distances, memory kept 0.7 0.7 6" in legend
    assert "all distances, memory erased 0.1 0.1 6" in legend
    show(browser, page, "curves", theme=theme)
    assert errors(browser) == [], "nothing is left of it that draws"


def opacity(colour: str) -> float:
    """That of `rgba(r, g, b, opacity)`; a browser leaves 1 away."""
    parts = colour[colour.index("(") + 1 : -1].split(",")
    return float(parts[3]) if len(parts) == 4 else 1.0


FIRST_SIGHT = """
const look = () => {
  if (!document.querySelector("tr[data-id]")) return;
  looking.disconnect();
  // The first moment at which the rows have been painted.
  requestAnimationFrame(() => setTimeout(() => { window.firstSight = performance.now(); }));
};
const looking = new MutationObserver(look);
looking.observe(document, { childList: true, subtree: true });
"""
"""Notes the milliseconds from the start of the navigation to the first rows of the list."""


def test_ten_thousand_episodes_are_seen_in_two_seconds(browser: Chrome, tmp_path: Path) -> None:
    (run,) = found = watched([long_run(tmp_path).path()])
    run.refresh()  # as `engram view` does before it prints the link
    script = browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": FIRST_SIGHT}
    )
    try:
        with page_served(view_page(found)) as address:
            browser.get("about:blank")
            browser.get(f"{address}#episodes")
            until(lambda: ask(browser, "window.firstSight"))
            seconds = ask(browser, "window.firstSight") / 1000
            assert "10,000" in browser.find_element(By.CSS_SELECTOR, ".pages").text
            assert count(browser, "tr[data-id]") == 100
            assert seconds < 2, f"{seconds:.2f} s"
            browser.get("about:blank")
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_marks_are_told_apart_by_sign_and_line_where_colours_are_not_seen(
    browser: Chrome, page: str
) -> None:
    looks: dict[str, tuple[str, ...]] = {}
    for name in ("1-000004-2", "1-000004-3"):
        show_episode(browser, page, name)
        for kind in ("told", "recalled", "missed", "wrong"):
            for mark in browser.find_elements(By.CSS_SELECTOR, f"[data-turn] mark.{kind}"):
                sign = mark.find_element(By.CSS_SELECTOR, ".sign").text
                line = mark.value_of_css_property("border-bottom-style")
                assert looks.setdefault(kind, (sign, line)) == (sign, line)
    assert set(looks) == {"told", "recalled", "missed", "wrong"}
    for column in zip(*looks.values(), strict=True):
        assert len(set(column)) == len(looks), looks
    bars = browser.find_elements(By.CSS_SELECTOR, "[data-turn] .rewards tbody tr:not(.sum)")
    assert {bar.find_element(By.TAG_NAME, "th").text for bar in bars} == {"bleu", "recall"}, (
        "components have one colour and a name each"
    )


def test_text_stays_text(browser: Chrome, page: str) -> None:
    show(browser, page, "episodes?id=1-000004-1")
    until(lambda: count(browser, "[data-turn='2']"))
    assert "engram" in browser.title
    assert count(browser, "#main img") == 0
    text = browser.find_element(By.CSS_SELECTOR, "[data-turn='2'] .words").text
    assert text == HOSTILE.replace("\x1b", "␛").replace("\u202e", "U+202E")


def test_the_keyboard_is_enough(browser: Chrome, page: str) -> None:
    show(browser, page, "curves")
    press(browser, "2")
    until(lambda: count(browser, "tr[data-id]"))
    for key in ("j", "j", "k", "j"):
        press(browser, key)
        time.sleep(0.2)
    second = ask(browser, "document.querySelectorAll('tr[data-id]')[1].dataset.id")
    until(lambda: ask(browser, "document.getElementById('conversation').dataset.id") == second)
    press(browser, Keys.ESCAPE)
    until(lambda: count(browser, "tr[aria-selected]") == 0)
    press(browser, "?")
    assert count(browser, "dialog[open]") == 1
    press(browser, Keys.ESCAPE)
    until(lambda: count(browser, "dialog[open]") == 0)
    theme = ask(browser, "document.documentElement.dataset.theme")
    press(browser, "t")
    assert ask(browser, "document.documentElement.dataset.theme") != theme
    press(browser, "1")
    until(lambda: count(browser, "input[type=search]"))
    press(browser, "/")
    browser.switch_to.active_element.send_keys("reward/comp")
    until(lambda: count(browser, ".metric:not([hidden])") == 1)


def test_curves_have_their_meaning(browser: Chrome, page: str) -> None:
    show(browser, page, "curves?search=objective/scores")
    until(lambda: count(browser, "[data-metric='objective/scores'][data-drawn]"))
    text = browser.find_element(By.CSS_SELECTOR, "[data-metric='objective/scores']").text
    assert "Weighted reward." in text
    assert "reward, higher is better" in text
    assert "of: scored turns" in text
    assert "0.65" in text, "the newest value"


def test_live_updates_arrive(browser: Chrome, tmp_path: Path) -> None:
    _, directory = begin(tmp_path, "live")
    assert directory.local is not None
    metrics, writer, journal = Metrics(), MetricsWriter(directory), Journal(directory.local, 1)
    record_iteration(metrics, writer, journal, 0, count=2)
    with served(directory) as address:
        show(browser, address, "episodes")
        until(lambda: count(browser, "tr[data-id]") == 2)
        until(lambda: browser.find_element(By.ID, "live").text == "live")
        record_iteration(metrics, writer, journal, 1, count=2)
        until(lambda: count(browser, "tr[data-id]") == 4)
        until(lambda: "step 6" in browser.find_element(By.ID, "status").text)
        assert errors(browser) == []
        browser.get("about:blank")


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES)
def test_a_report_of_two_runs_shows_both_and_asks_for_nothing(
    browser: Chrome, run: RunDirectory, tmp_path: Path, size: str, theme: str
) -> None:
    other = watched_run(tmp_path, "other", iterations=3)
    file = tmp_path / "report.html"
    file.write_text(report_html(watched([run.path(), other.path()])), encoding="utf-8")
    look_at_every_section(browser, file.as_uri(), size, theme)
    for section in ("memory", "waits", "state"):
        show(browser, file.as_uri(), section, size, theme)
        until(lambda: count(browser, ".runs > [data-run]") == 2)
    show(browser, file.as_uri(), "episodes?run=1&id=1-000002-1", size, theme)
    until(lambda: count(browser, "[data-state='missed']"))
    assert count(browser, "#main img") == 0
    assert errors(browser) == []
    assert {url for url in requested(browser) if url.startswith("http")} == set()


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of `#rrggbb`."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", THEMES)
def test_colours_stand_out_from_the_ground(browser: Chrome, page: str, theme: str) -> None:
    show(browser, page, "state", theme=theme)
    ground = luminance(ask(browser, "frame.colour('ground')"))
    wanted = dict.fromkeys(("ink", "soft", "accent", "good", "bad", "told"), 4.5)
    for name, least in (wanted | {f"c{index}": 3.0 for index in range(7)}).items():
        own = luminance(ask(browser, f"frame.colour('{name}')"))
        contrast = (max(own, ground) + 0.05) / (min(own, ground) + 0.05)
        assert contrast >= least, f"{name}: {contrast:.2f}"
