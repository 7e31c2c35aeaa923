"""Runs that an older version wrote: the page shows what there is, and says what is missing.

They are made of a run of today by leaving out what came later, as the history of
`common/episode_arrow.py` and of the registry of metrics has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from starlette.testclient import TestClient

from common.episode_arrow import FORMAT_KEY, OPTIONAL
from common.storage.formats import EPISODES
from common.storage.run_directory import RunDirectory
from deploy.pages.frame import frame_app
from deploy.report import report_html
from deploy.view.server import view_page
from deploy.view.watched import watched
from rollout.journal.journal import Journal
from rollout.journal.reader import episode_heads, find_episode
from tests.browser import SIZES, ask, errors, served, show, show_episode, until
from tests.watched_runs import EPISODES as PLAYED
from tests.watched_runs import ITERATIONS, conversation, watched_run

LATER = ("time/idle_fraction", "reward/by_turn", "checkpoint/", "host/", "hacking/")
"""Metrics that the registry did not have, by how their names begin."""
GONE = "rollout/happiness"
"""A metric that this version's registry does not have."""


def older_run(folder: Path, format_: int = EPISODES) -> RunDirectory:
    """A finished run as it was written before episodes had columns for changes of memory, figures,
    texts written and thoughts. format_: of its episodes."""
    directory = watched_run(folder, "older")
    place = Path(directory.path())
    for part in (place / "episodes").glob("part-*.parquet"):
        table = pq.read_table(part)
        table = table.drop_columns([name for name in OPTIONAL if name in table.schema.names])
        table = table.replace_schema_metadata({FORMAT_KEY: str(format_)})
        pq.write_table(table, part)
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {key: value for key, value in row.items() if not key.startswith(LATER)} | {GONE: 0.5}
        for row in rows
    ]
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    summary = json.loads((place / "summary.json").read_text())
    for key in ("intervals", "counts", "most_frequent"):
        summary["retention"].pop(key, None)
    (place / "summary.json").write_text(json.dumps(summary))
    for name in ("environment.json", "logs/recorder.log", "logs/driver.log"):
        (place / name).unlink()
    return directory


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return older_run(tmp_path_factory.mktemp("older"))


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return older_run(tmp_path_factory.mktemp("oldest"), format_=EPISODES - 1)


def answers(directory: RunDirectory) -> Callable[[str], dict[str, object]]:
    page = view_page(watched([directory.path()]))
    web = TestClient(frame_app(page, "127.0.0.1", 8266, None), base_url="http://127.0.0.1:8266")

    def answer(path: str) -> dict[str, object]:
        found = web.get(f"/api/{path}")
        assert found.status_code == 200, path
        return dict(found.json())

    return answer


def test_what_an_older_run_has_is_shown(older: RunDirectory) -> None:
    ask_page = answers(older)
    metrics = {each["name"]: each for each in ask_page("metrics")["metrics"]}
    assert metrics["objective/scores"]["points"] == [ITERATIONS]
    assert metrics[GONE]["help"] == "not in this version's registry of metrics"
    assert "time/idle_fraction" not in metrics
    episodes = ask_page("episodes")
    assert episodes["total"] == ITERATIONS * PLAYED
    one = ask_page("episode?id=1-000004-3")
    assert not one["memory_recorded"]
    assert [turn["memory_change"] for turn in one["turns"]] == [None] * 4
    assert one["turns"][2]["facts"][0]["recalled"] is False
    memory = ask_page("memory")
    assert memory["over_time"]["all"] != []
    assert memory["evaluations"]["after_mrl"]["intervals"] == {}
    assert ask_page("waits")["overall"]["learner"] != {}
    state = ask_page("state")
    assert [stage["state"] for stage in state["stages"]] == ["over", "over"]
    assert state["problems"] == ["environment.json is not there"]
    assert report_html(watched([older.path()]))


def test_episodes_of_an_older_format_are_named_and_the_rest_is_shown(oldest: RunDirectory) -> None:
    ask_page = answers(oldest)
    problems = "\n".join(map(str, ask_page("state")["problems"]))
    assert "episodes/part-" in problems
    assert f"was written in format {EPISODES - 1} by another version of engram" in problems
    assert len(ask_page("metrics")["metrics"]) > 8
    assert ask_page("episodes")["total"] == ask_page("memory")["facts"] == 0
    assert report_html(watched([oldest.path()]))


SHOWN = {
    "curves": ("objective/scores", GONE, "not in this version's registry"),
    "episodes": ("1-000005-7",),
    "memory": ("held out, after MRL", "told \\ asked", "Held-out recall over time"),
    "waits": ("collect", "no idle shares", "an older version"),
    "state": ("environment.json is not there", "after 4 iterations"),
}
UNREADABLE = {
    "curves": ("objective/scores",),
    "episodes": ("in format 1 by another version", "No episode can be read"),
    "memory": ("No episode that can be read asks for a fact", "held out, after MRL"),
    "waits": ("collect",),
    "state": ("in format 1 by another version",),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["older", "oldest"])
def test_every_section_says_what_it_lacks(
    browser: Chrome, request: pytest.FixtureRequest, name: str, size: str
) -> None:
    directory = request.getfixturevalue(name)
    with served(directory) as address:
        for section, words in (SHOWN if name == "older" else UNREADABLE).items():
            show(browser, address, section, size)
            until(
                lambda words=words: all(
                    word in browser.find_element(By.ID, "main").text for word in words
                )
            )
            assert ask(browser, "document.documentElement.scrollWidth") <= SIZES[size][0]
        if name == "older":
            show_episode(browser, address, "1-000004-3", size)
            text = browser.find_element(By.ID, "conversation").text
            assert "not recorded for this episode" in text
            assert "Rex" in text
        assert errors(browser) == []
        browser.get("about:blank")


def test_a_run_that_a_newer_version_went_on_with_keeps_its_older_episodes(tmp_path: Path) -> None:
    directory = older_run(tmp_path)
    assert directory.local is not None
    journal = Journal(directory.local, stage=1)
    new = conversation("1-000009-0", 9, True)
    journal.dealt(9, [new.task])
    journal.arrived(9, [new])
    assert answers(directory)("episodes")["total"] == ITERATIONS * PLAYED + 1
    for name, changes in (("1-000004-3", 0), (new.id, len(new.memory_change))):
        assert len(find_episode(directory, name).episode.memory_change) == changes
    assert len(episode_heads(directory)) == ITERATIONS * PLAYED + 1
    journal.trained(9, 11)
    journal.seal()
    journal.close()
    assert find_episode(directory, new.id).episode.memory_change != []
    assert answers(directory)("episodes")["total"] == ITERATIONS * PLAYED + 1
