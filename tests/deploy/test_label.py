"""What people judged: dealt, kept, exported and brought in again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from common.data.preferences import load_preferences
from common.failures import EXIT_BAD_INPUT, EXIT_DONE, InputError
from common.storage.run_directory import RunDirectory
from deploy.cli import run_command
from deploy.label.desk import HOLD_SECONDS, order_of
from deploy.label.judgements import LabelFile, read_labels
from deploy.label.questions import open_source, run_questions
from deploy.label.rows import rows_of
from tests.judging import ORIGIN, Page, asked
from tests.watched_runs import begin, record_iteration

# --- dealing --------------------------------------------------------------------------------------


def test_two_people_never_get_the_same_question_unless_it_is_shared(tmp_path: Path) -> None:
    page = Page(asked(tmp_path, 6))
    seen: dict[str, list[str]] = {"anna": [], "ben": []}
    for _ in range(3):
        for who in seen:
            one = page.next(who)["question"]
            assert page.next(who)["question"]["id"] == one["id"], "a reload shows the same one"
            seen[who].append(one["id"])
        for who in seen:
            page.judge(who, seen[who][-1], verdict="ranked", ranks=[1, 2])
    assert page.next("anna")["question"] is None
    assert not set(seen["anna"]) & set(seen["ben"])
    page.close()
    shared = Page(asked(tmp_path, 7), shared=1.0)
    first = shared.next("carl")["question"]["id"]
    assert shared.next("dora")["question"]["id"] == first


def test_a_question_somebody_left_goes_to_another_once_no_other_is_left(tmp_path: Path) -> None:
    now = [1000.0]
    page = Page(asked(tmp_path, 2), clock=lambda: now[0])
    left = page.next("anna")["question"]["id"]
    page.judge("ben", page.next("ben")["question"]["id"], verdict="skipped")
    assert page.next("ben")["question"] is None
    now[0] += HOLD_SECONDS + 1
    assert page.next("ben")["question"]["id"] == left


def test_skipping_leaves_a_question_to_others(tmp_path: Path) -> None:
    page = Page(asked(tmp_path, 1))
    one = page.next("anna")["question"]["id"]
    assert page.judge("anna", one, verdict="skipped").json()["question"] is None
    assert page.next("ben")["question"]["id"] == one


def test_ranks_belong_to_answers_whatever_place_they_stood_at(tmp_path: Path) -> None:
    page = Page(asked(tmp_path, 12, answers=3))
    firsts = set()
    for _ in range(12):
        shown = page.next()["question"]
        firsts.add(shown["answers"][0][-1])
        best = sorted(shown["answers"])[1]
        ranks = [1 if answer == best else 2 for answer in shown["answers"]]
        assert page.judge("anna", shown["id"], verdict="ranked", ranks=ranks).status_code == 200
    assert firsts == {"0", "1", "2"}, "the order is random"
    lines = [json.loads(line) for line in page.source.labels.read_text().splitlines()]
    assert all(sorted(line["order"]) == [0, 1, 2] for line in lines if line["event"] == "judged")
    for preference in rows_of(read_labels(page.source.labels).judgements).preferences:
        assert preference.answers[0].endswith(".1")
        assert not preference.answers[1].endswith(".1"), "answers that tie are no pair"


def test_a_judgement_sent_twice_is_kept_once_and_undone_ones_are_asked_again(
    tmp_path: Path,
) -> None:
    page = Page(asked(tmp_path, 2))
    first = page.next()["question"]["id"]
    body = {"id": "0123456789", "labeller": "anna", "question": first}
    body |= {"verdict": "ranked", "ranks": [1, 1], "written": " better "}
    for _ in range(2):
        assert page.web.post("/api/judge", json=body).json()["counts"]["own"] == 1
    assert len(page.file.labels.judgements) == 1
    back = page.web.post("/api/undo", json={"labeller": "anna"}).json()
    assert (back["question"]["id"], back["counts"]["own"]) == (first, 0)
    assert back["before"] == {"verdict": "ranked", "ranks": [1, 1], "written": "better"}
    again = page.web.post("/api/undo", json={"labeller": "anna", "id": "0123456789"}).json()
    assert (again["question"]["id"], again["before"]) == (first, None), "a request sent again"
    refused = page.web.post("/api/undo", json={"labeller": "anna"})
    assert (refused.status_code, refused.json()) == (
        400,
        {"error": "undo: there is nothing to take back"},
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labeller": " "}, "labeller: give a name"),
        ({"question": "gone"}, "question: 'gone' is none of the 1 questions"),
        ({"verdict": "rank"}, "verdict: 'rank' is no verdict; did you mean 'ranked'?"),
        ({"ranks": [1, 3]}, "ranks: [1, 3] does not rank 2 answers"),
        ({"ranks": [1]}, "ranks: [1] does not rank 2 answers"),
        ({"ranks": [True, 2]}, "ranks: [True, 2] does not rank 2 answers"),
        ({"verdict": "demonstration"}, "verdict: the question has 2 answers to rank"),
        ({"id": "short"}, "id: should be a text of 8"),
        ({"written": 3}, "written: should be a text"),
    ],
)
def test_what_is_no_judgement_is_refused(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    page = Page(asked(tmp_path, 1))
    body = {"id": "0123456789", "labeller": "anna", "question": page.next()["question"]["id"]}
    answer = page.web.post(
        "/api/judge", json=body | {"verdict": "ranked", "ranks": [1, 2]} | change
    )
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(sentence)
    assert page.file.labels.judgements == []


def test_only_the_page_itself_may_post(tmp_path: Path) -> None:
    page = Page(asked(tmp_path, 1))
    body = json.dumps({"labeller": "anna"})
    for headers in (
        {"content-type": "text/plain"},
        {"content-type": "application/json", "origin": "http://evil.example"},
    ):
        assert page.web.post("/api/next", content=body, headers=headers).status_code == 403
    own = {"content-type": "application/json", "origin": ORIGIN}
    assert page.web.post("/api/next", content=body, headers=own).status_code == 200


# --- the file -------------------------------------------------------------------------------------


def test_a_file_cut_off_in_the_middle_keeps_every_other_judgement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = asked(tmp_path, 4)
    page = Page(path)
    for _ in range(3):
        page.judge("anna", page.next()["question"]["id"], verdict="ranked", ranks=[1, 2])
    page.close()
    labels = page.source.labels
    labels.write_bytes(labels.read_bytes()[:-40])
    again = Page(path)  # the last line, `shown`, was cut off
    assert len(again.file.labels.judgements) == 3
    again.judge("anna", again.next()["question"]["id"], verdict="ranked", ranks=[2, 1])
    again.close()
    lines = labels.read_bytes().split(b"\n")
    assert len(read_labels(labels).judgements) == 4, "the line after it stands by itself"
    lines[3] = lines[3][:30]
    labels.write_bytes(b"\n".join(lines))
    assert len(read_labels(labels).judgements) == 3
    assert run_command(["label", "export", str(path), str(tmp_path / "out")]) == EXIT_DONE
    told = capsys.readouterr().err
    assert "line 4, 6 was cut off or damaged" in told or "line 4, 7 was cut off" in told
    assert len(load_preferences(tmp_path / "out" / "preferences.jsonl")) == 3


def test_a_foreign_file_and_a_second_server_are_refused(tmp_path: Path) -> None:
    page = Page(asked(tmp_path))
    with pytest.raises(InputError, match="another `engram label` writes these labels"):
        LabelFile(page.source.labels)
    page.close()
    page.source.labels.write_text('{"some": "thing"}\n')
    with pytest.raises(InputError, match="is no file of labels: none of its 1 lines"):
        LabelFile(page.source.labels)


def test_labels_of_answers_that_are_gone_are_said_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = asked(tmp_path, 2)
    page = Page(path)
    for _ in range(2):
        page.judge("anna", page.next()["question"]["id"], verdict="ranked", ranks=[1, 2])
    page.close()
    path.write_text(path.read_text().replace("answer 1.1", "another answer"))
    assert run_command(["label", "export", str(path), str(tmp_path / "out")]) == EXIT_DONE
    assert "1 judged question is no longer asked here" in capsys.readouterr().err
    assert len(load_preferences(tmp_path / "out" / "preferences.jsonl")) == 2
    again = Page(path)
    assert again.next()["question"]["prompt"] == "prompt 1", "the new answers are asked"
    assert "no longer asked" in again.web.get("/api/progress").json()["notes"][0]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"prompt": " "}', "field prompt: is empty"),
        ('{"prompt": "a", "answers": ["1", "2", "3", "4", "5"]}', "holds 5; up to 4 can be ranked"),
        ('{"prompt": "a", "answer": "b"}', "field answer:"),
        ('{"prompt": "a", "answers": ["b", "b"]}', "all answers to each prompt are the same"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(
    tmp_path: Path, line: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(line + "\n")
    assert run_command(["label", str(path)]) == EXIT_BAD_INPUT
    assert sentence in capsys.readouterr().err


def test_what_is_no_source_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["label", str(tmp_path / "nothing")]) == EXIT_BAD_INPUT
    assert "there is no such file and no such run" in capsys.readouterr().err


def test_a_run_asks_prompts_that_were_answered_in_several_ways(tmp_path: Path) -> None:
    from common.telemetry.jsonl import MetricsWriter
    from common.telemetry.metrics import Metrics
    from rollout.journal.journal import Journal

    _, directory = begin(tmp_path)
    assert directory.local is not None
    journal = Journal(directory.local, 1)
    record_iteration(Metrics(), MetricsWriter(directory), journal, 0, count=4)
    for question in run_questions(directory):
        assert 2 <= len(set(question.answers)) <= 4
    source = open_source(directory.path())
    assert source.labels == directory.local / "labels.jsonl"
    assert isinstance(RunDirectory.existing(directory.path()), RunDirectory)


# --- the server that is killed --------------------------------------------------------------------


def started(path: Path, port: int) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "deploy", "label", str(path), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    return server, "http" + line.partition(": http")[2].split()[0]


def post(address: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{address}api/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def test_a_killed_server_loses_nothing_and_asks_nothing_twice(tmp_path: Path) -> None:
    path, seen = asked(tmp_path, 9), []
    server, address = started(path, 0)
    for number in range(9):
        shown = post(address, "next", {"labeller": "anna"})["question"]
        held = post(address, "next", {"labeller": "ben"})["question"]
        body = {"id": f"judgement {number}", "labeller": "anna", "question": shown["id"]}
        if number % 4 == 3:
            os.kill(server.pid, signal.SIGKILL)
            server.wait(10)
            server, address = started(path, 0)
        post(address, "judge", body | {"verdict": "ranked", "ranks": [1, 2]})
        after = post(address, "next", {"labeller": "ben"})["question"]
        assert (after or {}).get("id") == (held or {}).get("id"), "ben is on the same one"
        seen.append(shown["id"])
        if number == 7:
            break
    server.terminate()
    server.wait(10)
    assert len(set(seen)) == 8
    kept = read_labels(open_source(str(path)).labels)
    assert [each.question.id for each in kept.judgements] == seen
    assert order_of(kept.judgements[0].question, "anna") == kept.judgements[0].order
