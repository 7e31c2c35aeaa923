"""What the page of a run is told: by its API, on whole, damaged, empty and large runs."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from common.episode import Fact
from common.failures import EXIT_BAD_INPUT, EXIT_DONE, InputError
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import MetricsWriter, RowFollower, read_rows
from common.telemetry.metrics import Metrics
from deploy import report
from deploy.cli import run_command
from deploy.pages.frame import frame_app
from deploy.report import keep_report, report_html, write_report
from deploy.view.answers import known_values, places, segments
from deploy.view.conversation import conversation as told
from deploy.view.curves import thinned
from deploy.view.server import view_page
from deploy.view.watched import WatchedRun, watched
from reward_service.components.recall import values_named
from rollout.journal.journal import Journal
from rollout.journal.reader import find_episode
from tests.watched_runs import EPISODES, ITERATIONS, begin, conversation, long_run, watched_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return watched_run(tmp_path_factory.mktemp("runs"))


def client(*runs: RunDirectory) -> TestClient:
    found = watched([run.path() for run in runs])
    return TestClient(
        frame_app(view_page(found), "127.0.0.1", 8266, None), base_url="http://127.0.0.1:8266"
    )


def test_every_metric_of_a_row_is_a_curve_with_its_meaning(run: RunDirectory) -> None:
    web = client(run)
    metrics = web.get("/api/metrics").json()["metrics"]
    names = {key.partition("{")[0] for row in read_rows(run) for key in row}
    assert {metric["name"] for metric in metrics} == names - {"step", "stage", "time"}
    scores = next(metric for metric in metrics if metric["name"] == "objective/scores")
    assert (scores["help"], scores["unit"], scores["better"]) == (
        "Weighted reward",
        "reward",
        "higher",
    )
    curve = web.get("/api/series", params={"name": "objective/scores"}).json()["objective/scores"]
    rows = [row for row in read_rows(run) if "objective/scores" in row]
    assert curve[0]["steps"] == [row["step"] for row in rows]
    assert curve[0]["values"] == [row["objective/scores"] for row in rows]


def test_marks_are_those_of_the_matching_code_on_the_recorded_episode(run: RunDirectory) -> None:
    watch = watched([run.path()])[0]
    watch.refresh()
    for name in ("1-000000-0", "1-000000-1"):
        episode = find_episode(run, name).episode
        shown = told(watch, name)
        assert shown is not None
        for turn, page in zip(episode.turns[1:], shown["turns"][1:], strict=True):
            if not turn.facts:
                continue
            right, wrong = values_named(turn, known_values(episode.turns))
            marks = {part.get("mark"): part["text"] for part in page["answer"]}
            assert ("recalled" in marks) == bool(right)
            assert ("wrong" in marks) == bool(wrong)
            assert [fact["recalled"] for fact in page["facts"]] == [bool(right)]
            assert "".join(part["text"] for part in page["answer"]) == turn.answer
    wrong_answer = told(watch, "1-000000-1")
    assert wrong_answer is not None
    assert wrong_answer["turns"][2]["answer"] == [
        {"text": "It is "},
        {"text": "Max", "mark": "wrong"},
        {"text": ", in "},
        {"text": "Rome", "mark": "wrong"},
        {"text": "."},
    ]
    assert {"text": "Rex", "mark": "told"} in wrong_answer["turns"][1]["query"]


def test_rewards_show_how_each_component_entered_the_total(run: RunDirectory) -> None:
    one = client(run).get("/api/episode", params={"id": "1-000001-2"}).json()
    rewards = one["turns"][2]["rewards"]
    assert [(each["name"], each["raw"], each["weight"]) for each in rewards] == [
        ("bleu", 0.5, 0.4),
        ("recall", 1.0, 0.6),
    ]
    assert sum(each["share"] for each in rewards) == pytest.approx(one["turns"][2]["reward"])
    assert one["staleness"] == 0
    assert one["outcome"] == "trained"
    assert one["replay"].startswith("engram replay ")
    assert [token["log_prob"] for token in one["turns"][2]["tokens"]] == [-0.1, -2.5, -0.01]


@pytest.mark.parametrize(
    ("words", "matching"),
    [
        ({}, ITERATIONS * EPISODES),
        ({"step": "short"}, 2 * EPISODES),
        ({"failed": "true"}, ITERATIONS),
        ({"distance": "1"}, ITERATIONS * EPISODES),
        ({"distance": "2"}, 0),
        ({"reward_from": "0.5"}, ITERATIONS * EPISODES // 2),
        ({"text": "REX NOW"}, ITERATIONS * EPISODES),
        ({"text": "in rome, or"}, 0),
        ({"text": "onerror"}, ITERATIONS),
        ({"text": "1-000003-4"}, 1),
    ],
)
def test_a_filter_keeps_what_it_names(
    run: RunDirectory, words: dict[str, str], matching: int
) -> None:
    found = client(run).get("/api/episodes", params=words).json()
    assert found["matching"] == matching
    assert found["total"] == ITERATIONS * EPISODES


def test_a_bad_filter_and_a_bad_episode_are_named(run: RunDirectory) -> None:
    web = client(run)
    for path, said in (
        ("/api/episodes?stp=short", "did you mean 'step'?"),
        ("/api/episodes?distance=far", "'far' is not what this filter takes"),
        ("/api/episodes?order=best", "'best' is none"),
        ("/api/episode?id=nothing", "is none of the 48 episodes"),
        ("/api/log?name=../config.yaml", "is no log of the run"),
        ("/api/state?run=7", "is none of the 1 runs"),
    ):
        answer = web.get(path)
        assert answer.status_code == 400
        assert said in answer.json()["error"]
    assert web.get("/static/../frame.py").status_code == 404


def test_memory_counts_what_was_told_and_recalled(run: RunDirectory) -> None:
    found = client(run).get("/api/memory").json()
    assert found["facts"] == 2 * ITERATIONS * EPISODES
    assert found["matrix"]["recall"][1][2] == 0.5, "Rex, told in turn 1: every second answer"
    assert found["matrix"]["recall"][0][3] == 1.0, "Rome, told in the opening"
    assert found["over_time"]["distances"] == [1, 3]
    assert found["evaluations"]["erased"]["recall"]["all"] == 0.1


def test_phases_are_seconds_between_rows(run: RunDirectory) -> None:
    found = client(run).get("/api/waits").json()
    assert found["intervals"][-1]["roles"]["learner"] == {"collect": 2.0, "update": 1.0}
    assert found["overall"]["learner"] == {"train": 2.0, "collect": 12.0, "update": 6.0}
    assert found["intervals"][-1]["idle"] == {"learner": 0.66, "rewards": 0.9}


# --- runs that are not whole ----------------------------------------------------------------------


def test_a_damaged_run_shows_what_there_is_and_says_what_is_missing(tmp_path: Path) -> None:
    directory = watched_run(tmp_path)
    folder = Path(directory.path())
    (folder / "summary.json").write_text("{")
    (folder / "environment.json").unlink()
    (folder / "config.yaml").write_text("format: 99\n")
    first = sorted((folder / "episodes").glob("part-*.parquet"))[0]
    first.write_bytes(b"PAR1 and then nothing")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines[2] = "no row\n"
    (folder / "metrics.jsonl").write_text("".join(lines) + '{"step": 99, "torn')
    web = client(directory)
    problems = "\n".join(web.get("/api/state").json()["problems"])
    for said in (
        "format 99",
        "summary.json",
        "environment.json is not there",
        "line 3",
        first.name,
    ):
        assert said in problems
    for path in ("runs", "metrics", "memory", "waits", "state", "episodes"):
        assert web.get(f"/api/{path}").status_code == 200
    assert web.get("/api/episodes").json()["total"] == 2 * EPISODES
    assert report_html(watched([directory.path()]))


def test_an_empty_run_says_that_nothing_is_there_yet(tmp_path: Path) -> None:
    _, directory = begin(tmp_path)
    web = client(directory)
    state = web.get("/api/state").json()
    assert any("no step was logged" in problem for problem in state["problems"])
    assert any("no episodes are recorded" in problem for problem in state["problems"])
    assert [stage["name"] for stage in state["stages"]] == ["joint_lm", "mrl"]
    with pytest.raises(InputError, match="is not a run directory"):
        watched([str(tmp_path)])


def test_a_growing_run_is_read_by_what_is_new(tmp_path: Path) -> None:
    _, directory = begin(tmp_path)
    assert directory.local is not None
    metrics, writer, journal = Metrics(), MetricsWriter(directory), Journal(directory.local, 1)
    watch = watched([directory.path()])[0]
    for iteration in range(3):
        journal.dealt(iteration, ["a"])
        journal.arrived(
            iteration, [replace(conversation(f"e{iteration}", iteration, True), task="a")]
        )
        journal.trained(iteration, iteration + 1)
        metrics.record("run/stage", 1)
        writer.write(metrics.flush(iteration + 1, "mrl"))
        if iteration == 1:
            journal.seal()
        assert watch.refresh() == iteration + 1
        assert watch.refresh() == iteration + 1, "nothing is new"
        assert (len(watch.rows), len(watch.episodes.rows)) == (iteration + 1, iteration + 1)
    MetricsWriter(directory, 1)  # a resume from step 1
    watch.refresh()
    assert [row["step"] for row in watch.rows] == [1]


def test_rows_that_were_written_anew_are_read_anew(tmp_path: Path) -> None:
    _, directory = begin(tmp_path)
    writer, follower = MetricsWriter(directory), RowFollower(directory)
    row = {"step": 1, "stage": "mrl", "time": 1.0, "train/loss_lm": 2.0}
    writer.write(row)
    assert follower.read() == ([row], False)
    writer.add(row | {"train/loss_lm": 3.0})
    assert follower.read() == ([row | {"train/loss_lm": 3.0}], True)
    assert follower.read() == ([], False)


def test_ten_thousand_episodes_answer_in_a_second(tmp_path: Path) -> None:
    web = client(long_run(tmp_path))
    seconds = {}
    for path in ("runs", "metrics", "episodes", "episodes?text=rome", "episode?id=7-7"):
        began = time.perf_counter()
        assert web.get(f"/api/{path}").status_code == 200
        seconds[path] = time.perf_counter() - began
    assert web.get("/api/episodes").json()["total"] == 10_000
    assert seconds["runs"] + seconds["metrics"] < 2, seconds
    assert max(seconds["episodes"], seconds["episodes?text=rome"]) < 1, seconds


# --- who may ask ----------------------------------------------------------------------------------


def test_an_open_address_needs_the_token(run: RunDirectory) -> None:
    page = view_page(watched([run.path()]))
    with pytest.raises(InputError, match="a token is needed"):
        frame_app(page, "0.0.0.0", 1, None)
    web = TestClient(frame_app(page, "0.0.0.0", 1, "secret"), follow_redirects=False)
    for path in ("/", "/static/frame.js", "/api/runs", "/?token=secre", "/?token="):
        assert web.get(path).status_code == 401
    bearer = {"Authorization": "Bearer secret"}
    assert web.get("/api/runs", headers=bearer).status_code == 200
    given = web.get("/?token=secret")
    assert (given.status_code, given.headers["location"]) == (303, "/")
    assert "HttpOnly" in given.headers["set-cookie"]
    assert "SameSite=strict" in given.headers["set-cookie"]
    assert web.get("/api/runs").status_code == 200, "the cookie that was set"


def test_another_site_cannot_reach_the_page_under_its_name(run: RunDirectory) -> None:
    web = client(run)
    assert web.get("/api/runs", headers={"host": "evil.example"}).status_code == 421
    assert web.get("/api/runs", headers={"host": "localhost:8266"}).status_code == 200
    policy = web.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


# --- texts and thinning ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value", "found"),
    [
        ("it is REX.", "Rex", ["REX"]),
        ("Rexford", "Rex", []),
        ("5 % of 5%", "5%", ["5 %", "5%"]),
        ("ｆｕｌｌ Ｒｅｘ and Rex", "Rex", ["Ｒｅｘ", "Rex"]),
        ("İzmir, then Rex", "Rex", ["Rex"]),
        ("", "Rex", []),
    ],
)
def test_a_value_is_marked_where_it_is_written(text: str, value: str, found: list[str]) -> None:
    assert [text[start:end] for start, end in places(text, value)] == found


def test_longer_values_are_marked_first() -> None:
    parts = segments("New York or York", {"recalled": ["York"], "wrong": ["New York"]})
    assert parts == [
        {"text": "New York", "mark": "wrong"},
        {"text": " or "},
        {"text": "York", "mark": "recalled"},
    ]


def test_thinning_keeps_every_peak() -> None:
    values = [0.0] * 5000
    values[1234], values[4321] = 9.0, -9.0
    kept = thinned(values, 100)
    assert len(kept) <= 100
    assert {0, 1234, 4321, 4999} <= set(kept)


# --- report and list ------------------------------------------------------------------------------


def test_a_report_is_written_and_a_failure_to_is_only_logged(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    where = Path(write_report(run))
    text = where.read_text(encoding="utf-8")
    held = text.partition('id="data">')[2].partition("</script>")[0]
    data = json.loads(held)
    assert "<" not in held
    assert data["runs"][0]["label"] == "watched"
    assert data["episodes"][0]["recorded"] == ITERATIONS * EPISODES

    def fails(_: object) -> str:
        raise RuntimeError("no picture")

    monkeypatch.setattr(report, "report_html", fails)
    keep_report(run)
    assert "report.html could not be written" in caplog.text


def test_runs_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watched_run(tmp_path, "one")
    begin(tmp_path, "two")
    (tmp_path / "no-run").mkdir()
    assert run_command(["runs", str(tmp_path), "--json"]) == EXIT_DONE
    found = json.loads(capsys.readouterr().out)["runs"]
    assert [(one["name"], one["status"], one["stage"]) for one in found] == [
        ("one", "done", "mrl"),
        ("two", "killed", ""),
    ]
    assert found[0]["figures"]["reward"] == pytest.approx(0.65)
    assert run_command(["runs", str(tmp_path)]) == EXIT_DONE
    assert capsys.readouterr().out.startswith("2 runs in ")
    assert run_command(["runs", str(tmp_path / "nowhere")]) == EXIT_BAD_INPUT


def test_a_run_that_is_named_twice_is_refused(run: RunDirectory) -> None:
    with pytest.raises(InputError, match="named twice"):
        watched([run.path(), run.path()])
    assert WatchedRun(run, "over", over=True).status() == "done"


def test_a_value_without_anything_to_match_is_no_failure(run: RunDirectory) -> None:
    one = conversation("x", 0, True)
    turns = (*one.turns[:3], replace(one.turns[3], facts=(Fact(" ", 0),)))
    assert known_values(turns)
