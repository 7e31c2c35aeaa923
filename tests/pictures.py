"""Pictures of the page for the documentation: `python -m tests.pictures RUN EPISODE`.

Writes docs/pictures/*.png of a finished run, the conversation at its last turn. Look at them before
they are committed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from selenium.webdriver import Chrome

from common.storage.run_directory import RunDirectory
from tests.browser import (
    DATA,
    SIZES,
    ask,
    count,
    open_browser,
    served,
    show,
    show_episode,
    until,
)  # fmt: skip

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
SIZES["desk"] = 1200, 800
SECTIONS = ("curves", "memory", "waits")
LAST_TURN = "document.querySelector('[data-turn]:last-of-type')"


def keep(browser: Chrome, name: str) -> None:
    browser.save_screenshot(str(PICTURES / f"{name}.png"))


def main(path: str, episode: str) -> None:
    where = Path(path).resolve()
    with open_browser() as browser, served(RunDirectory(str(where.parent), where.name)) as address:
        for section in SECTIONS:
            show(browser, address, section)
            until(lambda section=section: count(browser, DATA[section]))
            keep(browser, section)
        show_episode(browser, address, episode)
        ask(browser, f"{LAST_TURN}.previousElementSibling.scrollIntoView()")
        until(lambda: count(browser, "[data-heat]"))
        keep(browser, "episode")


if __name__ == "__main__":
    main(*sys.argv[1:3])
