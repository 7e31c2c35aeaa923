"""Figures of an evaluation and of a run, as a reader sees them."""

from __future__ import annotations

from typing import Any

from deploy.figures import MOST_COLUMNS, figure_tables, main_tables
from deploy.tables import evaluation_tables, summary_tables


def test_retention_is_shown_by_distance_in_numeric_order_with_gaps_and_intervals() -> None:
    intervals = {"erased": {"2": [0.0, 0.125]}}
    retention = {
        "before_mrl": {"all": 0.2, "10": 0.1, "2": 0.25},
        "erased": {"2": 0.0},
        "intervals": intervals,
    }
    (text,) = figure_tables({"retention": retention})
    rows = text.splitlines()
    assert rows[1].split() == ["2", "10", "all"]
    assert rows[2].split() == ["before", "mrl", "0.250", "0.100", "0.200"]
    assert rows[3].split() == ["erased", "0.000", "-", "-"]
    assert rows[4].split() == ["95", "%", "0.00–0.12"]


def test_the_other_figures_have_tables_of_their_own_before_and_after_mrl_or_once() -> None:
    share = {"1": 0.5, "all": 0.5}
    summary = {
        "after_mrl": share,
        "exact": {"before_mrl": share, "after_mrl": {"1": 0.75}},
        "by_order": {"after_mrl": share},
    }
    recall, others, order = figure_tables({"retention": summary})
    assert "exact" not in recall
    assert [line.split()[-2:] for line in others.splitlines()[2:]] == [
        ["0.500", "0.500"],
        ["0.750", "-"],
    ]
    assert "exact answers, after mrl" in others
    assert "told" in order
    (_, others) = figure_tables({"retention": {"memory": share, "outdated": share, "changed": {}}})
    assert others.splitlines()[2].split() == [
        "answers",
        "with",
        "the",
        "outdated",
        "value",
        "0.500",
        "0.500",
    ]


def test_summary_names_rewards_by_component_failed_turns_and_alarms() -> None:
    seen = {"first": 0.25, "last": 0.5}
    metrics = {
        "reward/component{component=bleu}": seen,
        "reward/component{component=bleu,cohort=trained}": {"first": 0.9, "last": 0.9},
        "reward/failed_turns{reason=judge}": {"first": 0, "last": 12},
        "reward/alarms{component=bleu,kind=constant}": {"first": 1, "last": 3},
    }
    stage = {"name": "mrl", "steps": 10, "wall_seconds": 61.0, "metrics": metrics}
    summary = {
        "name": "demo",
        "status": "done",
        "wall_seconds": 62.0,
        "stages": [stage],
        "retention": {},
        "warnings": ["learnt by heart"],
    }
    text = summary_tables(summary)
    assert text.endswith("learnt by heart")
    lines = [line.split() for line in text.splitlines()]
    assert ["bleu", "0.250", "0.500"] in lines
    assert ["failed", "turns", "judge", "12"] in lines
    assert ["alarms", "bleu", "constant", "3"] in lines
    assert "0.900" not in text


def test_summary_shows_stages_and_leaves_out_retention_where_there_is_none() -> None:
    stage = {
        "name": "sft",
        "steps": 10,
        "wall_seconds": 61.0,
        "metrics": {"train/loss_lm": {"first": 3.0, "best": 0.5, "last": 0.5}},
    }
    summary = {
        "name": "demo",
        "status": "done",
        "wall_seconds": 62.0,
        "stages": [stage],
        "retention": {},
    }
    text = summary_tables(summary)
    assert "demo: done after 1 min 02 s" in text
    assert "loss 3 → 0.5" in text
    assert "Recall" not in text


def test_evaluation_shows_rewards_where_they_were_computed() -> None:
    retention = {"memory": {"1": 0.9}, "erased": {"1": 0.0}}
    scores = {"memory": {"recall": 0.5, "total": 0.75}, "erased": {"recall": 0.25}}
    text = evaluation_tables(
        {"retention": retention, "scores": scores, "warnings": ["by heart"]}, full=True
    )
    assert text.endswith("by heart")
    lines = [line.split() for line in text.splitlines()]
    assert ["recall", "total"] in lines
    assert ["mean", "reward,", "memory", "0.500", "0.750"] in lines
    assert ["mean", "reward,", "erased", "0.250", "-"] in lines
    assert "mean reward" not in evaluation_tables({"retention": retention, "warnings": []})


def test_what_a_figure_is_of_stands_below_it_once_for_rows_that_are_of_the_same() -> None:
    counts = {"1": 1200, "all": 1300}
    retention: dict[str, Any] = {
        "memory": {"1": 0.5, "all": 0.5},
        "training": {"1": 0.9, "all": 0.9},
        "erased": {"1": 0.1, "all": 0.1},
        "most_frequent": {"1": 0.2, "all": 0.2},
        "intervals": {"training": {"1": [0.8, 1.0], "all": [0.8, 1.0]}},
        "counts": {
            "memory": counts,
            "training": {"1": 3, "all": 7},
            "erased": counts,
            "most_frequent": counts,
        },
    }
    (text,) = figure_tables({"retention": retention})
    assert [line.split() for line in text.splitlines()[2:]] == [
        ["memory", "0.500", "0.500"],
        ["facts", "1,200", "1,300"],
        ["training", "0.900", "0.900"],
        ["95", "%", "0.80–1.00", "0.80–1.00"],
        ["facts", "3", "7"],
        ["erased", "0.100", "0.100"],
        ["most", "frequent", "0.200", "0.200"],
        ["facts", "1,200", "1,300"],
    ]


def test_conversations_without_facts_have_tables_of_what_there_is() -> None:
    nothing: dict[str, Any] = {"memory": {}, "erased": {}, "exact": {}, "by_order": {}}
    match = {
        "exact_match": {"before_mrl": {"1": 0.25}, "after_mrl": {"1": 0.5}},
        "f1": {"before_mrl": {"1": 0.4}, "erased": {"1": 0.3}},
        "counts": {"f1": {"before_mrl": {"1": 8}, "erased": {"1": 8}}},
    }
    (text,) = figure_tables({"retention": nothing, "match": match, "scores": {"memory": {}}})
    assert text.startswith("Agreement with the reference")
    labels = [line.rsplit(maxsplit=1)[0].strip() for line in text.splitlines()[2:]]
    assert labels == [
        "exact match, before mrl",
        "exact match, after mrl",
        "word F1, before mrl",
        "word F1, erased",
        "answers",
    ]
    assert figure_tables({"retention": nothing}) == []


def test_a_long_conversation_does_not_make_a_table_wider_than_can_be_read() -> None:
    turns = {str(number): 0.5 for number in range(1, 41)} | {"all": 0.25}
    tables = figure_tables({"match": {"f1": {"memory": turns}}})
    headers = [text.splitlines()[1].split() for text in tables]
    assert headers[0] == [*map(str, range(1, 12)), "all"]
    assert [key for header in headers[1:] for key in header] == [*map(str, range(12, 41))]
    assert all(len(header) <= MOST_COLUMNS for header in headers)
    assert tables[0].splitlines()[2].split()[-1] == "0.250"
    assert tables[1].splitlines()[0].endswith("by turn of the conversation, from 12 on")


def test_distances_together_stand_in_numeric_order_and_a_line_without_them_is_left_out() -> None:
    keys = [*map(str, range(1, 17)), "17-32", "33-64", "65-128", "129-256", "257-512", "513-1024"]
    shares = dict.fromkeys([*reversed(keys), "all"], 0.5)
    retention = {
        "memory": shares,
        "erased": {"1": 0.25},
        "counts": {"memory": dict.fromkeys(shares, 7)},
    }
    first, second = figure_tables({"retention": retention})
    assert second.splitlines()[1].split() == keys[11:]
    assert "erased" in first
    assert "erased" not in second
    assert second.splitlines()[-1].split() == ["facts", *["7"] * 11]


def test_the_time_of_a_turn_is_shown_where_it_was_measured() -> None:
    cost = {
        "seconds": {"1-16": 0.0125, "17-32": 0.5},
        "turns": {"1-16": 3200, "17-32": 16},
    }
    (text,) = figure_tables({"cost": cost})
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["1-16", "17-32"],
        ["milliseconds", "a", "turn", "12.5", "500"],
        ["turns", "3,200", "16"],
    ]
    assert main_tables({"cost": cost}) == [text]


def test_by_default_the_figures_beside_recall_are_one_table_over_all_turns() -> None:
    share = {"1": 0.5, "all": 0.25}
    retention = {
        "after_mrl": share,
        "exact": {
            "before_mrl": share,
            "after_mrl": {"1": 0.75, "all": 0.5},
        },
        "intervals": {"exact": {"after_mrl": {"all": [0.4, 0.6]}}},
        "by_order": {"after_mrl": {"first": 0.1, "all": 0.25}},
    }
    scores = {"memory": {"recall": 0.5, "total": 0.75}, "counts": {"memory": {"total": 1200}}}
    recall, others = main_tables({"retention": retention, "scores": scores})
    assert recall.startswith("Recall by turns")
    header, *rows = others.splitlines()[1:]
    assert header.split() == ["before", "mrl", "after", "mrl", "memory", "of"]
    assert [row.split() for row in rows] == [
        ["exact", "answers", "0.250", "0.500", "-"],
        ["95", "%", "0.400–0.600"],
        ["mean", "reward", "-", "-", "0.750", "1,200", "answers"],
    ]
    text = evaluation_tables({"retention": retention, "warnings": []})
    assert text.endswith("--full")
    assert "--full" not in evaluation_tables({"retention": retention, "warnings": []}, full=True)
    assert evaluation_tables({"warnings": []}) == ""
