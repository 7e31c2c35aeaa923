"""Interactions that do not fit a model, and facts that contradict one another: named by file and
row, and counted, by `plan` and at the door of training alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.config.run import Run
from common.data.conversations import save_pairs, save_rows
from common.data.corpus import Corpus, corpus_of
from common.data.datasets.table import load_corpus
from common.data.preferences import Preference, save_preferences
from common.data.tokenizer import train_tokenizer
from common.episode import Fact, Interaction, Row
from common.failures import InputError
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import QuietProgress
from deploy.plan_summary import plan_summary
from learner.fit import require_fit
from learner.setup import prepare
from tests.local_source import tiny_run

ASKED = Interaction("where do I live?", "in Rome", role="recall", facts=(Fact("Rome", 0),))
FITS = Row("I live in Rome.", "okay", (ASKED,))
LONG = replace(FITS, query="I live in Rome. " * 9)


def rows_run(folder: Path, *files: list[Row], **more: Any) -> Run:
    """A run on files of conversations, the last of which is held out."""
    names = [str(folder / f"{i}.jsonl") for i in range(len(files))]
    for name, rows in zip(names, files, strict=True):
        save_rows(rows, name)
    data = {"kind": "rows", "train": names[:-1], "eval": names[-1:]}
    stage = {"stage": "memory_aware", "steps": 1, "batch_size": 2}
    return tiny_run(folder, stage, data=data | more)


def test_plan_and_training_name_file_row_and_tokens_of_what_is_too_long(tmp_path: Path) -> None:
    other = replace(FITS, interactions=(replace(ASKED, answer="in Rome, " * 12),))
    run = rows_run(tmp_path, [FITS, FITS], [FITS, other, LONG], [LONG])
    corpus = load_corpus(run.data, run.seed)
    told = []
    for ask in (
        lambda: plan_summary(run, corpus),
        lambda: prepare(run, RunDirectory(run.runs, run.name), corpus),
    ):
        with pytest.raises(InputError) as refused:
            ask()
        told.append(str(refused.value))
    assert told[0] == told[1]
    tokens = train_tokenizer(corpus.texts, run.tokenizer.vocab_size)
    count, longer = (
        len(tokens.interaction(turn)) for turn in (other.interactions[0], LONG.opening)
    )
    assert told[0].startswith(
        f"{tmp_path}/1.jsonl, row 2, interaction 1: query and answer ('in Rome, in Rome, in Rome,' "
        f"…) have {count} tokens, model.max_tokens is 32;"
    )
    long = "1.jsonl, row 3", "2.jsonl, row 1"
    also = [f"{tmp_path}/{name}, interaction 0 ({longer} tokens)" for name in long]
    assert told[0].endswith("; " + "; ".join(also))


def test_many_are_counted_and_a_few_of_them_named(tmp_path: Path) -> None:
    run = rows_run(tmp_path, [replace(LONG, query=f"{LONG.query} {i}") for i in range(20)], [FITS])
    corpus = load_corpus(run.data, run.seed)
    with pytest.raises(InputError, match=r"row 5, interaction 0 \(\d+ tokens\); and 15 more$"):
        require_fit(corpus, train_tokenizer(corpus.texts, 400), 32)
    tokenizer = train_tokenizer(corpus.texts, 400)
    longest = max(len(tokenizer.interaction(turn)) for row in corpus.train for turn in row.turns)
    require_fit(corpus, tokenizer, longest)
    with pytest.raises(InputError, match=rf"have {longest} tokens"):
        require_fit(corpus, tokenizer, longest - 1)


def test_pairs_of_a_file_are_named_by_it_and_those_of_conversations_are_not_told_twice(
    tmp_path: Path,
) -> None:
    pairs = [[ASKED], [ASKED, Interaction(LONG.query, "okay")]]
    for i, each in enumerate(pairs):
        save_pairs(each, tmp_path / f"pairs{i}.jsonl")
    names = [str(tmp_path / f"pairs{i}.jsonl") for i in range(2)]
    run = rows_run(tmp_path, [FITS], [FITS], pairs=names)
    corpus = load_corpus(run.data, run.seed)
    with pytest.raises(InputError, match=r"^.*/pairs1\.jsonl, row 2: query and .*shorten them$"):
        require_fit(corpus, train_tokenizer(corpus.texts, 400), 32)


def refusal(corpus: Corpus, limit: int = 32) -> str:
    with pytest.raises(InputError) as refused:
        require_fit(corpus, train_tokenizer(corpus.texts, 400), limit)
    return str(refused.value)


def test_preferences_are_named_by_file_and_row(tmp_path: Path) -> None:
    short, long = (Preference(query, ("yes", "no")) for query in ("warm?", "is it warm? " * 20))
    folder, names = tmp_path, ["a.jsonl", "b.jsonl", "held.jsonl"]
    for name, told in zip(names, ([short], [short, long], [short, short, long]), strict=True):
        grouped = [replace(each, group=f"{name}{i}") for i, each in enumerate(told)]
        save_preferences(grouped, folder / name)
    paths = [str(folder / name) for name in names]
    data = {"kind": "preferences", "train": paths[:2], "eval": paths[2:]}
    corpus = load_corpus(tiny_run(folder, "sft", data=data).data, 0)
    told = refusal(corpus)
    assert told.startswith(f"{paths[1]}, row 2: query and answer ('yes' …)")
    assert f"; {paths[2]}, row 3 (" in told
    assert "shorten them;" in told


def advice(corpus: Corpus, limit: int = 32) -> list[str]:
    told = refusal(corpus, limit)
    return [hint for hint in ("engram data divide", "data.layout=statement") if hint in told]


def test_advice_is_given_where_it_helps(tmp_path: Path) -> None:
    def of_files(*rows: Row) -> Corpus:
        run = rows_run(tmp_path, list(rows), [FITS])
        return load_corpus(run.data, run.seed)

    follow_up = Interaction(LONG.query, "okay", role="remember")
    assert advice(of_files(FITS, LONG)) == ["engram data divide"]
    assert advice(of_files(replace(FITS, interactions=(follow_up,)))) == ["engram data divide"]
    # It leaves questions, answers and what long_term conversations compare by as they are.
    for row in (
        replace(FITS, interactions=(replace(ASKED, query=LONG.query),)),
        replace(FITS, answer="in Rome, " * 20),
        replace(LONG, strategy="long_term"),
    ):
        assert advice(of_files(row)) == []
    # Conversations that are no file's cannot be divided.
    assert advice(corpus_of([LONG], [FITS], [])) == []


def test_another_layout_is_advised_for_blocks_of_stories(tmp_path: Path) -> None:
    for part, places in (("train", ("hall", "office", "garden", "kitchen")), ("test", ("park",))):
        stories = (
            f"1 {name} went to the {place}.\n2 {name} sat down.\n3 Where is {name}?\t{place}\t1\n"
            for name in ("Mary", "John", "Sandra", "Daniel")
            for place in places
        )
        (tmp_path / f"qa1_where_{part}.txt").write_text("".join(stories))
    for layout, hints in (("block", ["data.layout=statement"]), ("statement", [])):
        data = {"kind": "babi", "folder": str(tmp_path), "layout": layout, "eval_fraction": 0.3}
        assert advice(load_corpus(tiny_run(tmp_path, "sft", data=data).data, 0), 8) == hints


class Notes(QuietProgress):
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def test_contradictions_of_facts_are_counted_in_plan_and_training(tmp_path: Path) -> None:
    facts = (Fact("Rome", 0), Fact("Oslo", 1, ("Rome",)))
    moved = Interaction("Now I live in Oslo.", "okay", role="remember")
    wrong = replace(FITS, interactions=(moved, replace(ASKED, facts=facts)))
    run = rows_run(tmp_path, [FITS, wrong, wrong], [FITS])
    corpus, notes = load_corpus(run.data, run.seed), Notes()
    expected = (
        "warning: facts of one turn contradict one another in 2 conversations, 2 times; the first: "
        f"{tmp_path}/0.jsonl, row 2, interaction 2: it asks for 'Rome' and for 'Oslo', which "
        "replaced it"
    )
    assert expected in plan_summary(run, corpus)
    prepare(run, RunDirectory(run.runs, run.name), corpus, notes)
    assert expected in notes.told
