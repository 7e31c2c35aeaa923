"""A tiny run of all stages on a real Ray, which a real Prometheus scraped and a page in a real
browser watched from its first moment to its last."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from common.storage.run_directory import RunDirectory
from common.telemetry.progress import QuietProgress
from deploy.monitoring.provisioning import prometheus_config, targets_text
from learner.driver import train
from tests.browser import count, errors, served, show
from tests.local_source import STAGES, tiny_run
from tests.ports import free_ports
from tests.prometheus_tools import ask, require, serving

STEPS = 30
"""Steps of each supervised stage. Its figures go with it, so it must outlast a scrape: two steps of
memory_pretrain did not on a quick machine."""
ITERATIONS = 6
"""Iterations of MRL, of seven episodes each."""
BEGINS = 60.0
"""Seconds until a run has written its settings, at most."""


@dataclass
class Page:
    """What a page showed that was opened once and never loaded again."""

    heads: list[str] = field(default_factory=list)
    """The different texts of its head, in order."""
    episodes: list[int] = field(default_factory=list)
    """The different numbers of episodes in its list, in order."""
    errors: list[str] = field(default_factory=list)
    """Of its console."""


@dataclass(frozen=True)
class Observed:
    directory: RunDirectory
    page: Page
    prometheus: str
    began: float
    ended: float

    def names(self) -> set[str]:
        """Series that were there at any moment of the run."""
        window = {"start": str(self.began), "end": str(self.ended)}
        found = ask(self.prometheus, "series", **{"match[]": '{run="watched"}'}, **window)
        return {each["__name__"] for each in found}

    def ask_over_the_run(self, expression: str) -> Any:
        """In steps shorter than a scrape: the last figures of a run are there for one alone."""
        window = {"start": str(self.began), "end": str(self.ended), "step": "0.1"}
        return ask(self.prometheus, "query_range", query=expression, **window)["result"]


@contextmanager
def observed_run(folder: Path, browser: Chrome) -> Iterator[Observed]:
    """Scraped four times a second, and watched at the list of its episodes."""
    require("prometheus")
    (port,) = free_ports(1)
    stages = [
        STAGES[name] | {"steps": STEPS}
        for name in ("joint_lm", "sft", "memory_pretrain", "memory_aware")
    ]
    mrl = STAGES["mrl"] | {"evaluate_every": 2}
    run = tiny_run(folder, *stages, mrl, name="watched", metrics={"port": port})
    directory = RunDirectory(run.runs, run.name)
    (folder / "runs.json").write_text(targets_text({"watched": f"http://127.0.0.1:{port}/metrics"}))
    config = prometheus_config(str(folder / "runs.json"), "rules.yml") | {"rule_files": []}
    config["global"] = {"scrape_interval": "250ms", "evaluation_interval": "1s"}
    with serving(folder / "prometheus", config) as address:
        began = time.time()
        with _watching(browser, directory) as page:
            train(run, QuietProgress())
            time.sleep(1)
        yield Observed(directory, page, address, began, time.time())


@contextmanager
def _watching(browser: Chrome, directory: RunDirectory) -> Iterator[Page]:
    page, over = Page(), threading.Event()

    def watch() -> None:
        ends = time.monotonic() + BEGINS
        while not directory.exists("config.yaml"):
            if over.wait(0.1) or time.monotonic() > ends:
                return
        with served(directory) as address:
            show(browser, address, "episodes")
            while True:
                last = over.is_set()
                with suppress(StaleElementReferenceException):
                    head = browser.find_element(By.ID, "status").text
                    page.heads += [head] if [head] != page.heads[-1:] else []
                    listed = count(browser, "tr[data-id]")
                    page.episodes += [listed] if [listed] != page.episodes[-1:] else []
                if last:
                    break
                over.wait(0.3)
            page.errors += errors(browser)
            browser.get("about:blank")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield page
    finally:
        over.set()
        watcher.join()
