"""The pages of figures: they say what the results say, and benchmarks write results they read."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.pages import feedback, three_memories
from benchmarks.pages.__main__ import DOCS, PAGES, README
from benchmarks.pages.readme import front_page
from benchmarks.pages.text import WIDTH, load_results
from benchmarks.parts import Part
from benchmarks.record import RESULTS, record
from common.telemetry.progress import QuietProgress
from deploy.bench import run_bench

MEASURED = load_results(RESULTS)


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_results_say(name: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == PAGES[name](MEASURED), "write it anew: python -m benchmarks.pages"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_at_most_100_lines_of_100_columns(name: str) -> None:
    lines = (DOCS / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
    assert [line for line in lines if len(line) > WIDTH] == []


def test_sentences_of_all_pages_have_lines_of_100_columns() -> None:
    """Tables, code, links and pictures have the width that they need."""
    root = README.parent
    long = []
    for page in (*sorted(DOCS.glob("*.md")), README, root / "CONTRIBUTING.md"):
        outside = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        long += [
            f"{page.name}: {line[:60]}"
            for line in outside.splitlines()
            if len(line) > WIDTH and not line.startswith(("|", "    ", "![")) and "http" not in line
        ]
    assert long == []


def test_the_readme_shows_the_demos_table() -> None:
    readme = README.read_text(encoding="utf-8")
    assert front_page(readme, MEASURED) == readme, "write it anew: python -m benchmarks.pages"
    other: Any = copy.deepcopy(dict(MEASURED))
    first = min((name for name in other if name.startswith("demo-")), key=lambda n: int(n[5:]))
    other[first]["retention"]["erased"]["2"] = 0.4321
    assert "| `erased` |" in front_page(readme, other)
    assert "0.432" in front_page(readme, other)
    with pytest.raises(ValueError, match="demo table"):
        front_page("no marks", MEASURED)


def test_the_page_on_people_has_the_figures_of_its_rounds() -> None:
    page = (DOCS / "feedback.md").read_text(encoding="utf-8")
    assert feedback.with_figures(page, MEASURED) == page, "write it anew"
    score = {"mean": 0.1234, "error": 0.01}
    share = {"share": 0.61, "low": 0.5, "high": 0.7}
    right = {"accuracy": 0.71, "accuracy_low": 0.6, "accuracy_high": 0.8}
    held = {"reward_model": right, "win_rate": share, "people": None}
    run = {
        "labels": [{"ranked": 3, "alike": 1, "turned": 0, "demonstrated": 7, "skipped": 2}],
        "scores": [score, score, score],
        "rounds": [held | {"people": share}, held],
        "noise": 0.05,
        "held_out": 10,
        "first_to_last": {"mean": 0.05, "error": 0.02},
        "start_to_last": score,
        "wins_start": share,
        "seconds": 300.0,
        "command": "python -m benchmarks.feedback 9 FOLDER",
        "environment": {"git_commit": "0123456789"},
    }
    found = feedback.with_figures(page, {"feedback-9": run})
    assert "| 2 | 0.123 ± 0.010 | 0.71 (0.60–0.80) | 0.61 (0.50–0.70) | – |" in found
    assert "gives 7 demonstrations" in " ".join(found.split())
    assert "by 0.050 ± 0.020 over the same prompts: beyond what" in " ".join(found.split())


def test_preferences_and_recall_are_a_part_of_the_page_once_they_were_measured() -> None:
    assert "Preferences and recall" not in PAGES["reward_models.md"](MEASURED) or any(
        name.startswith("rlhf-") for name in MEASURED
    )
    origin = {"command": "python -m benchmarks.rlhf 1", "environment": {"git_commit": "01234567"}}
    runs: Any = {}
    for seed, after in ((1, 0.70), (2, 0.50)):
        own = {
            "recall": {"all": 0.72},
            "exact": {"all": 0.6},
            "intervals": {"recall": {"all": [0.65, 0.8]}},
            "addressed": 0.5,
            "seconds": 0.0,
        }
        policies = {"before": own, "both": own | {"recall": {"all": after}, "seconds": 100.0}}
        policies["quality"] = policies["both"] | {"recall": {"all": 0.1}, "addressed": 0.97}
        runs[f"rlhf-{seed}"] = origin | {"episodes": 1536, "policies": policies}
    others = {name: run for name, run in MEASURED.items() if not name.startswith("rlhf-")}
    page = PAGES["reward_models.md"]({**others, **runs})
    both = "| quality and recall together | 0.500 (0.50–0.50) | 0.600 (0.50–0.70) |"
    assert f"{both} 0.600 (0.60–0.60) | 100 |" in page
    text = " ".join(page.split())
    assert "in 1 of 2 seeds where both are paid, and in 2 where quality is paid alone" in text
    assert len(page.splitlines()) <= 100


def test_text_memory_is_a_part_of_the_page_once_it_was_measured() -> None:
    assert "## Text memory" not in PAGES["memory_results.md"](MEASURED) or any(
        name.startswith("text_memory-") for name in MEASURED
    )
    kinds = {}
    for kind, recall in (("text", 0.61), ("window", 0.25)):
        shares = {str(distance): recall for distance in range(1, 12)} | {"all": recall}
        bounds = {key: [recall - 0.05, recall + 0.05] for key in shares}
        kinds[kind] = {
            "retention": {
                "memory": shares,
                "erased": {"all": 0.1},
                "intervals": {"memory": bounds},
            },
            "tokens_per_answer": {"before_answer": 40, "before_memory": 66, "of_memory": 20},
            "cut": 0.125,
            "seconds": {"lm_sft": 300.0, "lm_rl": 900.0},
        }
    origin: dict[str, Any] = {"command": "python -m benchmarks.text_memory 1 FOLDER", "seed": 1}
    origin["start"] = {"seconds": {"lm_sft": 600.0}}
    run: Any = {"text_memory-1": {**origin, **kinds, "environment": {"git_commit": "01234567"}}}
    page = PAGES["memory_results.md"]({**MEASURED, **run})
    assert "| all | 0.610 (0.56–0.66) | 0.100 | 0.250 (0.20–0.30) | 0.100 |" in page
    assert "An answer reads 40 tokens with the text memory" in " ".join(page.split())
    assert "12.5%" in page
    assert len(page.splitlines()) <= 100
    assert [line for line in page.splitlines() if len(line) > WIDTH] == []


def test_real_talk_is_a_part_of_the_results_once_it_was_measured() -> None:
    origin: Any = {"command": "python -m talk", "environment": {"git_commit": "01234567"}}
    shares = {"1": 0.5, "4": 0.25, "all": 0.4}
    retention: Any = dict.fromkeys(("memory", "most_frequent", "exact", "precision"), shares)
    retention |= {"erased": {"all": 0.02}}
    intervals = {"memory": {"all": [0.38, 0.42]}, "erased": {"all": [0.01, 0.03]}}
    run = origin | {"seed": 7, "wall_seconds": 3000.0, "conversations": 835}
    run |= {"retention": retention | {"intervals": intervals}}
    talks = {"real_talk_sgd-7": run, "real_talk_persona-7": run}
    page = PAGES["results.md"](MEASURED | talks)
    assert "| memory | 0.500 | – | – | 0.250 | 0.400 |" in page
    assert "over all 0.400 (0.38–0.42)" in " ".join(page.split())
    assert "| 7 | 0.400 (0.38–0.42) | 0.020 (0.01–0.03) | 0.400 |" in page
    assert max(map(len, page.splitlines())) <= WIDTH


def test_long_memory_and_capacity_are_parts_of_the_page_once_they_were_measured() -> None:
    runs: dict[str, Any] = {}
    for gate, recall in (("per_number", 0.91), ("linear", 0.42)):
        origin: Any = {"command": f"python -m {gate}", "environment": {"git_commit": "01234567"}}
        at: Any = {"recall": {"all": recall}, "erased": {"all": 0.1}}
        at["intervals"] = {"recall": {"all": [recall - 0.02, recall + 0.02]}}
        each = {"early": 0.008, "late": 0.0082, "ratio": 1.025}
        cost = {"conversations": [each] * 3, "ratio": 1.025, "turns": 2048}
        long = origin | {"gate": gate, "recall": {"16": at, "2048": at}, "cost": cost}
        held = {"exact": recall, "interval": [recall - 0.02, recall + 0.02], "changed": 0.5}
        facts = {"4": held | {"erased": 0.01, "changed": None}, "48": held | {"erased": 0.01}}
        capacity = origin | {"gate": gate, "slots": 24, "learnt": [2, 16], "facts": facts}
        runs |= {f"long_memory_{gate}": long, f"capacity_{gate}-1": capacity}
    page = PAGES["memory_results.md"]({**MEASURED, **runs})
    assert "| 2,048 | 0.420 (0.40–0.44) | 0.100 | 0.910 (0.89–0.93) | 0.100 |" in page
    assert "| 48 | 2.00 | 0.420 (0.40–0.44) | 0.500 | 0.010 |" in page
    assert "| 4 | 0.17 | 0.420 (0.40–0.44) | – | 0.010 |" in page
    assert "gate per number 1.025 (8.2 ms a turn)" in " ".join(page.split())
    assert [line for line in page.splitlines() if len(line) > WIDTH] == []


def test_memories_side_by_side_have_a_table_and_a_picture_once_they_were_measured() -> None:
    def kind(share: float) -> dict[str, Any]:
        exact = {str(each): share / each for each in range(1, 32)} | {"all": share}
        bounds = {each: [value - 0.01, value + 0.01] for each, value in exact.items()}
        return {"exact": exact, "erased": {"all": 0.1}, "intervals": {"exact": bounds}}

    names = ("latent", "text", "window", "whole")
    costs = {span: {"seconds": 0.0125} for span in ("1-4", "61-64")}
    tokens = {"8": {"before_answer": 10.0, "of_memory": 2.0}, "32": {"before_answer": 1234.0}}
    run: Any = {
        "seed": 1,
        "command": "python -m benchmarks.three_memories 1",
        "environment": {"git_commit": "01234567"},
        "lengths": {n: {name: kind(0.8) for name in names} for n in ("8", "32")},
        "costs": dict.fromkeys(names, costs),
        "tokens": dict.fromkeys(names, tokens),
    }
    measured = {**MEASURED, "three_memories-1": run}
    page = PAGES["memory_results.md"](measured)
    assert "| 16 | 0.050 (0.04–0.06) |" in page
    assert "| short-term memory | 12 | 1,234 | 12 | 12 |" in page
    assert [line for line in page.splitlines() if len(line) > WIDTH] == []
    chart = three_memories.picture(measured)
    assert chart is not None
    lines = ElementTree.fromstring(chart).findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(str(line.get("points")).split()) for line in lines] == [31] * 4
    assert three_memories.picture({}) is None


def test_a_page_shows_another_measurement() -> None:
    other: Any = copy.deepcopy(dict(MEASURED))
    other["rollout"]["figures"]["slot_occupancy"] = 0.51
    other["rollout"]["figures"] |= {
        "gpu_nano_64_tokens_per_second": 12345.6,
        "gpu_nano_64_bandwidth_share": 0.42,
    }
    page = PAGES["performance.md"](other)
    assert "| slot occupancy | 0.51 | 0.9 |" in page
    assert "| nano | 64 | 12,346 | 42% |" in page
    assert "Not measured" not in page


def test_every_seed_of_the_demo_is_a_row_and_patterns_are_over_all_seeds() -> None:
    seeds = sorted(int(name.removeprefix("demo-")) for name in MEASURED if "demo-" in name)
    other: Any = copy.deepcopy(dict(MEASURED))
    other["demo-100"] = copy.deepcopy(other[f"demo-{seeds[0]}"])
    other["demo-100"]["retention"]["erased"]["all"] = 0.123
    other["demo-100"]["patterns"]["changed_twice"]["changed"]["all"] = 0.25
    lines = PAGES["results.md"](other).splitlines()
    rows = [line.split(" | ")[0] for line in lines if line.startswith("| ")]
    begin = rows.index("| seed") + 2
    assert rows[begin : begin + len(seeds) + 1] == [f"| {seed}" for seed in [*seeds, 100]]
    assert " | 0.123 | " in next(line for line in lines if line.startswith("| 100 |"))
    lowest = next(line for line in lines if line.startswith("| `changed_twice`")).split(" | ")[2]
    assert lowest == "0.250"
    other["demo-100"]["unseen"] = ["changed_asked_at_once"]
    page = PAGES["results.md"](other)
    assert "* |" not in page, "a pattern that one of the seeds was trained on has no star"


def test_algorithms_are_compared_over_their_seeds() -> None:
    one = {"algorithm": "reinforce", "reward_first": 0.2, "reward_last": 0.5}
    one |= {"environment": {"git_commit": "1234567890"}}
    runs: Any = {
        "reinforce-1": one | {"recall_before": 0.6, "recall_after": 0.7},
        "reinforce-2": one | {"reward_last": 0.7, "recall_before": 0.6, "recall_after": 0.9},
    }
    others = {name: each for name, each in MEASURED.items() if not name.startswith("reinforce-")}
    lines = PAGES["mrl_results.md"]({**others, **runs}).splitlines()
    assert next(line for line in lines if line.startswith("| `reinforce`")) == (
        "| `reinforce` | 2 | 0.200 (0.20–0.20) | 0.600 (0.50–0.70) "
        "| 0.600 (0.60–0.60) | 0.800 (0.70–0.90) |"
    )


def test_babi_is_a_row_by_seed_and_one_by_part_that_is_left_out() -> None:
    exact = {"1": 1.0, "2": 0.5, "3": 0.25, "all": 0.75}
    bounds = {distance: [share - 0.1, share] for distance, share in exact.items()}
    retention = {"exact": exact, "intervals": {"exact": bounds}, "erased": {"all": 0.1}}
    one = {
        "retention": retention | {"most_frequent": {"all": 0.2}},
        "wall_seconds": 300,
        "environment": {"git_commit": "1234567890"},
    }
    runs: Any = {
        "babi-10": one,
        "babi-9": one,
        "babi_without_reading-9": one | {"change": "without_reading"},
    }
    own = ("babi-", "babi_with")
    others = {name: each for name, each in MEASURED.items() if not name.startswith(own)}
    lines = PAGES["results.md"]({**others, **runs}).splitlines()
    rows = [line for line in lines if line.startswith(("| 9 ", "| 10 ", "| without "))]
    whole = "1.000 (0.90–1.00) | 0.500 (0.40–0.50) | 0.250 (0.15–0.25) | 0.750 (0.65–0.75)"
    shares = "1.000 | 0.500 | 0.250 | 0.750 (0.65–0.75)"
    assert rows == [
        f"| {name} | {figures} | 0.100, 0.200 |"
        for name, figures in ((9, whole), (10, whole), ("without reading", shares))
    ]


def test_all_tasks_of_babi_stand_two_in_a_row_in_place_of_six() -> None:
    task = {"interval": [0.94, 0.98], "erased": 0.2, "most_frequent": 0.1}
    wrong = {str(number): 0.01 * number for number in range(1, 20)}
    run: Any = MEASURED["babi-3"] | {
        "command": "python -m benchmarks.babi_all 1 FOLDER",
        "wall_seconds": 3000.0,
        "tasks": {number: task | {"exact": 1 - error} for number, error in wrong.items()},
        "curve": [{"minutes": 1.0, "accuracy": 0.5}, {"minutes": 30.4, "accuracy": 0.75}],
    }
    text = PAGES["results.md"](MEASURED | {"babi_all-1": run})
    assert "| 1 | 0.010 (0.02–0.06) | 0.800 | 0.900 | 11 | 0.110 (0.02–0.06) | 0.800 |" in text
    assert "Mean 0.100; at most 5% in 5 tasks." in " ".join(text.split())
    assert "0.50 (1), 0.75 (30)" in " ".join(text.split())
    assert "six tasks in one model, by older code" not in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= WIDTH
    assert len(text.splitlines()) <= 100


def test_the_game_is_told_of_over_its_seeds() -> None:
    runs: Any = {"game-1": {"first": 0.2, "last": 0.6}, "game-2": {"first": 0.4, "last": 0.8}}
    others = {name: found for name, found in MEASURED.items() if not name.startswith("game-")}
    page = " ".join(PAGES["mrl_results.md"]({**others, **runs}).split())
    assert "rises from 0.300 (0.20–0.40) in the first iterations to 0.700 (0.60–0.80)" in page


def test_the_page_on_mrl_says_how_often_it_was_better() -> None:
    """By intervals of differences: one above 0, one below, two that hold it."""
    run: Any = copy.deepcopy(next(MEASURED[name] for name in MEASURED if name.startswith("mrl16-")))
    bounds = ([0.1, 0.05, 0.2], [-0.1, -0.2, -0.05], [0.0, 0.0, 0.0], [0.1, -0.1, 0.2])
    for found, difference in zip(run["lengths"].values(), bounds, strict=True):
        found["differences"] = {"mrl - before": difference, "mrl - supervised": bounds[0]}
    page = " ".join(PAGES["mrl_results.md"]({"mrl16-1": run}).split())
    assert "In 4 rows MRL is better than before, beyond the interval, in 1 and worse in 1;" in page
    assert "better than more supervision in 4 and worse in 0. MRL ends" in page
    assert "they teach sooner" not in page


def test_a_record_names_command_machine_and_versions(tmp_path: Path) -> None:
    path = record("rewards", "engram bench rewards", {"figures": {"rate": 2.0}}, tmp_path)
    assert path == tmp_path / "rewards.json"
    found = json.loads(path.read_text())
    assert (found["command"], found["figures"]) == ("engram bench rewards", {"rate": 2.0})
    assert "cores of" in found["machine"]
    # The pages name these.
    assert {"torch", "ray"} <= found["environment"]["packages"].keys()
    assert found["environment"].keys() >= {"python", "git_commit"}


def test_a_benchmark_is_recorded_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "benchmarks.rewards.parts", lambda quick: [Part("one", lambda: {"rate": 3})]
    )
    assert run_bench("rewards", QuietProgress()) == {"rate": 3}
    assert list(tmp_path.iterdir()) == []
    assert run_bench("rewards", QuietProgress(), folder=tmp_path) == {"rate": 3}
    assert json.loads((tmp_path / "rewards.json").read_text())["figures"] == {"rate": 3.0}
