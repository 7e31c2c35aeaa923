"""Rows that judgements become, export and import, and agreement of those who labelled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.data.conversations import load_pairs
from common.data.preferences import Preference, load_preferences, save_preferences
from common.failures import EXIT_DONE, InputError
from deploy.cli import run_command
from deploy.label.agreement import agreement
from deploy.label.judgements import Question, read_labels
from deploy.label.label_studio import from_label_studio, label_studio_text
from deploy.label.questions import open_source
from deploy.label.rows import preferences_of, rows_of
from tests.judging import Page, asked, judged

THREE = Question("what about tea", ("good", "fair", "poor"), (("I like tea", "noted"),))

DEMONSTRATION = Question("say hello")


def test_rankings_become_rows_and_ties_become_pairs() -> None:
    (whole,) = preferences_of(judged(THREE, "anna", (2, 1, 3)))
    assert (whole.answers, whole.history) == (("fair", "good", "poor"), THREE.history)
    tied = preferences_of(judged(THREE, "anna", (1, 2, 2)))
    assert [each.answers for each in tied] == [("good", "fair"), ("good", "poor")]
    assert {each.group for each in tied} == {whole.group}
    rows = rows_of(
        [
            judged(THREE, "anna", (1, 1, 1)),
            judged(THREE, "ben", None, written="better"),
            judged(DEMONSTRATION, "ben", None, verdict="demonstration", written="hello"),
        ]
    )
    assert (rows.preferences, rows.undecided, rows.later) == ([], 2, 1)
    assert [(each.query, each.answer) for each in rows.demonstrations] == [("say hello", "hello")]


def test_label_studio_brings_back_what_it_was_given(tmp_path: Path) -> None:
    told = [
        judged(THREE, "anna", (2, 1, 2), written="tea, please"),
        judged(THREE, "ben", None),
        judged(DEMONSTRATION, "ben", None, verdict="demonstration", written="hello"),
        judged(THREE, "carl", None, verdict="skipped"),
    ]
    path = tmp_path / "label_studio.json"
    path.write_text(label_studio_text(told))
    assert from_label_studio(path, None) == sorted(
        told, key=lambda each: each.question.id != told[0].question.id
    )
    pairwise = {"type": "pairwise", "value": {"selected": "right"}}
    task = {
        "data": {"prompt": "a", "text1": "left one", "text2": "right one"},
        "annotations": [
            {
                "completed_by": {"email": "d@e.f"},
                "result": [pairwise | {"value": {"selected": "right"}}],
            }
        ],
    }
    path.write_text(json.dumps([task]))
    (found,) = from_label_studio(path, None)
    assert (found.labeller, found.ranks) == ("d@e.f", (2, 1))
    path.write_text('[{"data": {}}]')
    with pytest.raises(InputError, match="task 1: is not as engram writes it"):
        from_label_studio(path, None)


def test_export_and_import_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = asked(tmp_path, 3, answers=3)
    page = Page(path)
    for ranks in ([1, 2, 3], [1, 1, 2]):
        name = page.next()["question"]["id"]
        page.judge("anna", name, verdict="ranked", ranks=ranks, written="w")
    page.close()
    out = tmp_path / "out"
    assert run_command(["label", "export", str(path), str(out)]) == EXIT_DONE
    assert len(load_preferences(out / "preferences.jsonl")) == 3
    assert [pair.answer for pair in load_pairs(out / "demonstrations.jsonl")] == ["w", "w"]
    other = tmp_path / "other.jsonl"
    other.write_text(path.read_text())
    for _ in range(2):
        words = ["label", "import", str(other), str(out / "label_studio.json")]
        assert run_command(words) == EXIT_DONE
    assert "0 judgements added, 2 were there already" in capsys.readouterr().out
    one, again = (read_labels(open_source(str(each)).labels) for each in (path, other))
    assert one.latest == again.latest
    save_preferences([Preference("else", ("x", "y"))], tmp_path / "rows.jsonl")
    words = ["label", "import", str(other), str(tmp_path / "rows.jsonl"), "--labeller", "ben"]
    assert run_command(words) == EXIT_DONE
    captured = capsys.readouterr()
    assert "1 judgement added" in captured.out
    assert "1 judged question is no longer asked here" in captured.err


def test_two_who_disagree_are_counted_and_both_rows_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = asked(tmp_path, 3)
    page = Page(path, shared=1.0)
    for who in ("anna", "ben"):
        for number in range(3):
            shown = page.next(who)["question"]
            best = min(shown["answers"]) if who == "anna" or number else max(shown["answers"])
            ranks = [1 if answer == best else 2 for answer in shown["answers"]]
            page.judge(who, shown["id"], verdict="ranked", ranks=ranks)
    page.close()
    assert run_command(["label", "export", str(path), str(tmp_path / "out")]) == EXIT_DONE
    said = capsys.readouterr().out
    assert "agree on 2 of 3 pairs of answers (67%" in said
    assert "differ on 1 question" in said
    assert len(load_preferences(tmp_path / "out" / "preferences.jsonl")) == 6


def test_agreement_worked_by_hand() -> None:
    pair = Question("a", ("x", "y"))
    found = agreement([judged(pair, "anna", (1, 2)), judged(pair, "ben", (1, 1))])
    assert (found.pairs, found.same, found.differing) == (1, 0, 1)
    assert found.by_chance == pytest.approx(2 * 0.25**2 + 0.5**2)
    assert found.beyond_chance == pytest.approx(-0.375 / 0.625)
    swapped = Question("a", ("y", "x"))
    assert agreement([judged(pair, "anna", (1, 2)), judged(swapped, "ben", (2, 1))]).same == 1
