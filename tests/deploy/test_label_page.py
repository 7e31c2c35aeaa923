"""Ranking answers in a real browser, by keys and by touch, while the server is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from common.data.conversations import load_pairs
from common.data.preferences import load_preferences
from deploy.cli import run_command
from deploy.label.desk import Desk
from deploy.label.judgements import LabelFile, read_labels
from deploy.label.questions import open_source
from deploy.label.server import label_page
from tests.browser import SIZES, ask, count, errors, page_served, press, requested, show, until
from tests.deploy.test_label import started
from tests.local_preferences import POLITE, RUDE, preference_run
from tests.local_source import run_here

pytestmark = [pytest.mark.timeout(300)]
HOSTILE = "<img src=x onerror=alert(1)><script>document.title='taken'</script><b>bold</b>"
TOPICS = ("tea", "milk", "bread", "rain", "snow", "wind", "jam", "salt", "rice", "corn", "figs")


def asked(folder: Path, *more: dict[str, object]) -> Path:
    path = folder / "asked.jsonl"
    rows = [
        {"prompt": f"what about {topic}", "answers": [f"{RUDE} {topic}", f"{POLITE} {topic}"]}
        for topic in TOPICS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *more]))
    return path


@contextmanager
def served(path: Path) -> Iterator[str]:
    source = open_source(str(path))
    with (
        LabelFile(source.labels) as file,
        page_served(label_page(source, Desk(source.questions, file))) as address,
    ):
        yield address


def words(browser: Chrome) -> list[str]:
    return [each.text for each in browser.find_elements(By.CSS_SELECTOR, ".answer .words")]


def question(browser: Chrome) -> str | None:
    found = browser.find_elements(By.ID, "task")
    return found[0].get_attribute("data-question") if found else None


def answer_with(browser: Chrome, *keys: str) -> None:
    """Press keys, the last of which goes on to another question."""
    before = question(browser)
    for key in keys:
        press(browser, key)
    until(lambda: question(browser) != before)


def best(browser: Chrome) -> str:
    """Key of the polite answer."""
    return "ab"[0 if words(browser)[0].startswith(POLITE) else 1]


def open_page(browser: Chrome, address: str, size: str = "desk", theme: str = "light") -> None:
    show(browser, address.replace("?", ""), "label", size, theme)
    if count(browser, "#name"):
        field = browser.find_element(By.ID, "name")
        field.clear()
        field.send_keys("anna", Keys.ENTER)
    until(lambda: count(browser, "#task, #over"))


def test_ten_comparisons_by_keyboard_while_the_server_is_killed(
    browser: Chrome, tmp_path: Path
) -> None:
    path = asked(tmp_path)
    server, address = started(path, 0)
    port = int(address.rstrip("/").rpartition(":")[2])
    open_page(browser, address)
    for number in range(10):
        if number == 3:  # taken back, and judged again
            before = question(browser)
            answer_with(browser, "x")
            answer_with(browser, "u")
            assert question(browser) == before
        if number == 5:
            os.kill(server.pid, signal.SIGKILL)
            server.wait(10)
            press(browser, best(browser))
            press(browser, Keys.ENTER)
            until(lambda: "Not saved yet" in browser.find_element(By.ID, "said").text)
            gone = errors(browser)
            assert all("ERR_CONNECTION_REFUSED" in each for each in gone)
            before = question(browser)
            server, _ = started(path, port)
            until(lambda before=before: question(browser) != before)
            errors(browser)
            continue
        if number == 7:
            answer_with(browser, "=", Keys.ENTER)
        elif number == 8:
            press(browser, "w")
            browser.switch_to.active_element.send_keys("a better answer", Keys.ESCAPE)
            answer_with(browser, best(browser), Keys.ENTER)
        else:
            answer_with(browser, best(browser), Keys.ENTER)
    assert errors(browser) == []
    assert {url for url in requested(browser) if not url.startswith((address, "about:"))} == set()
    server.terminate()
    server.wait(10)

    labels = read_labels(open_source(str(path)).labels)
    assert len(labels.judgements) == 10
    assert len({each.question.id for each in labels.judgements}) == 10, "nothing is asked twice"
    assert {each.labeller for each in labels.judgements} == {"anna"}
    assert len({each.order for each in labels.judgements}) == 2
    out = tmp_path / "rows"
    assert run_command(["label", "export", str(path), str(out)]) == 0
    rows = load_preferences(out / "preferences.jsonl")
    assert len(rows) == 9, "one is a tie"
    assert all(row.answers[0].startswith(POLITE) for row in rows)
    assert [pair.answer for pair in load_pairs(out / "demonstrations.jsonl")] == ["a better answer"]
    run = preference_run(
        tmp_path,
        {"stage": "reward_model", "steps": 30, "batch_size": 6, "evaluate_every": 30},
        data={"kind": "preferences", "train": [str(out / "preferences.jsonl")], "eval": []},
    )
    directory, _ = run_here(run)
    assert json.loads(directory.read_text("reward_model.json"))["pairs"] >= 1


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_and_answers_stay_text(
    browser: Chrome, tmp_path: Path, size: str, theme: str
) -> None:
    path = tmp_path / "asked.jsonl"
    history = [{"query": "I like tea, and I live in a town by the sea", "answer": HOSTILE}]
    rows = [
        {"prompt": HOSTILE, "answers": [HOSTILE, "x" * 300, "fair", "poor"], "history": history},
        {"prompt": "Say hello."},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with served(path) as address:
        open_page(browser, address, size, theme)
        assert ask(browser, "document.documentElement.scrollWidth") <= SIZES[size][0]
        assert HOSTILE in words(browser)
        assert browser.find_element(By.ID, "prompt").text == HOSTILE
        assert count(browser, "#main img, #main script, #main b") == 0
        shot(browser, f"rank-{size}-{theme}")
        letters = browser.find_elements(By.CSS_SELECTOR, ".letter")
        assert min(each.rect["height"] for each in letters) >= 44, "large enough for a finger"
        for place in (2, 0):
            browser.find_elements(By.CSS_SELECTOR, ".letter")[place].click()
        browser.find_element(By.ID, "tie").click()
        browser.find_elements(By.CSS_SELECTOR, ".letter")[1].click()
        until(lambda: count(browser, "[data-rank='2']") == 2)
        shot(browser, f"ranked-{size}-{theme}")
        browser.find_element(By.ID, "save").click()
        until(lambda: count(browser, ".answer") == 0)
        assert ask(browser, "document.documentElement.scrollWidth") <= SIZES[size][0]
        browser.find_element(By.ID, "written").send_keys("Hello!", Keys.CONTROL, Keys.ENTER)
        until(lambda: count(browser, "#over"))
        browser.find_element(By.CSS_SELECTOR, "nav a[data-name='progress']").click()
        until(lambda: count(browser, "#agreement"))
        assert ask(browser, "document.documentElement.scrollWidth") <= SIZES[size][0]
        shot(browser, f"progress-{size}-{theme}")
    assert "engram" in browser.title
    assert errors(browser) == []
    away = {url for url in requested(browser) if not url.startswith((address, "about:", "data:"))}
    assert away == set()
    first, second = read_labels(open_source(str(path)).labels).judgements
    assert first.ranks is not None
    by_place = [first.ranks[answer] for answer in first.order]
    assert by_place == [2, 2, 1, 3]
    assert (second.verdict, second.written) == ("demonstration", "Hello!")


def test_a_judgement_that_was_not_taken_is_sent_when_the_page_opens_again(
    browser: Chrome, tmp_path: Path
) -> None:
    path = asked(tmp_path)
    server, address = started(path, 0)
    port = int(address.rstrip("/").rpartition(":")[2])
    open_page(browser, address)
    os.kill(server.pid, signal.SIGKILL)
    server.wait(10)
    answer_key = best(browser)
    press(browser, answer_key)
    press(browser, Keys.ENTER)
    until(lambda: "Not saved yet" in browser.find_element(By.ID, "said").text)
    browser.get("about:blank")
    server, _ = started(path, port)
    open_page(browser, address)
    until(lambda: "1 of 11" in browser.find_element(By.ID, "done").text)
    server.terminate()
    server.wait(10)
    assert len(read_labels(open_source(str(path)).labels).judgements) == 1


def shot(browser: Chrome, name: str) -> None:
    """Kept for a look where ENGRAM_SHOTS names a folder."""
    folder = os.environ.get("ENGRAM_SHOTS")
    if folder:
        browser.save_screenshot(f"{folder}/{name}.png")
