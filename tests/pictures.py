"""Pictures of the pages for the documentation: `python -m tests.pictures RUN EPISODE`.

Writes docs/pictures/*.png of a finished run: every section, one of them dark, the conversation at
its last turn at desk and at phone width, and the page of `engram label` with that turn's answer and
its reference to compare. The run is only read. Look at the pictures before they are committed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from common.storage.run_directory import RunDirectory
from deploy.label.desk import Desk
from deploy.label.judgements import LabelFile
from deploy.label.questions import open_source
from deploy.label.server import label_page
from rollout.journal.reader import find_episode
from tests.browser import (
    DATA,
    SIZES,
    ask,
    count,
    open_browser,
    page_served,
    press,
    served,
    show,
    show_episode,
    until,
)  # fmt: skip

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
SIZES["desk"] = 1200, 800
SECTIONS = ("curves", "memory", "waits", "state")
DARK = "memory"
LAST_TURN = "document.querySelector('[data-turn]:last-of-type')"


SHORTEN = """
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  walker.currentNode.data = walker.currentNode.data.replaceAll(arguments[0], "");
}
"""


def keep(browser: Chrome, name: str) -> None:
    """Paths as somebody has them who began the run, and not as they are on this machine."""
    browser.execute_script(SHORTEN, f"{Path.cwd()}/")
    browser.save_screenshot(str(PICTURES / f"{name}.png"))


def section(browser: Chrome, address: str, name: str, theme: str, picture: str) -> None:
    show(browser, address, name, theme=theme)
    until(lambda: count(browser, DATA[name]))
    keep(browser, picture)


def conversation(browser: Chrome, address: str, episode: str, size: str, picture: str) -> None:
    show_episode(browser, address, episode, size)
    until(lambda: count(browser, "[data-heat]"))
    before = "" if size == "phone" else ".previousElementSibling"
    ask(browser, f"{LAST_TURN}{before}.scrollIntoView()")
    if size == "phone":
        # The head of the page stays at the top and would cover the turn's first lines.
        ask(browser, "window.scrollBy(0, -document.getElementById('head').offsetHeight)")
    keep(browser, picture)


def labelling(browser: Chrome, run: RunDirectory, episode: str, folder: Path) -> None:
    """The page of `engram label`: which answer to the last question of an episode is better?"""
    *before, last = find_episode(run, episode).episode.turns
    history = [{"query": turn.query, "answer": turn.answer} for turn in before[-4:] if turn.query]
    file = folder / "questions.jsonl"
    row = {"prompt": last.query, "answers": [last.answer, last.reference], "history": history}
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    source = open_source(str(file))
    with (
        LabelFile(source.labels) as labels,
        page_served(label_page(source, Desk(source.questions, labels))) as address,
    ):
        show(browser, address, "label")
        browser.find_element(By.ID, "name").send_keys("anna", Keys.ENTER)
        until(lambda: count(browser, "#task"))
        press(browser, "a")
        keep(browser, "label")
        browser.get("about:blank")


def main(path: str, episode: str) -> None:
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        where = Path(path).resolve()
        os.chdir(folder)
        Path("runs").symlink_to(where.parent)
        run = RunDirectory("runs", where.name)
        with served(run) as address:
            for name in SECTIONS:
                section(browser, address, name, "light", name)
            section(browser, address, DARK, "dark", "dark")
            for size, picture in (("desk", "episode"), ("phone", "phone")):
                conversation(browser, address, episode, size, picture)
            browser.get("about:blank")
        labelling(browser, run, episode, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:3])
