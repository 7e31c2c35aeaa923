"""The tests notice changes of signs, masks, counts and coefficients (`tests/mutate.py`)."""

from __future__ import annotations

import pytest

from tests.mutate import ROOT, changed, mutants, try_all


def test_every_mutant_finds_its_line_and_its_tests() -> None:
    for mutant in mutants():
        changed(mutant, (ROOT / mutant.file).read_text())
        for node in mutant.tests:
            path, _, function = node.partition("::")
            test = (ROOT / path).read_text()
            assert not function or f"def {function.partition('[')[0]}(" in test, node
            assert function.endswith("]") or "[" not in function, node


@pytest.mark.timeout(900)
def test_a_sample_of_mutants_is_caught() -> None:
    sample = [mutant for mutant in mutants() if mutant.sample]
    assert len(sample) == 10
    assert try_all(sample, jobs=2) == []
