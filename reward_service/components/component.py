"""The parts of a reward component. Each component is one file here that defines one
`RewardComponent`, and one line of `table.py`; its settings are in `common/config/components.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from common.config.components import Component
from common.episode import Turn
from reward_service.comparison import Compared

S = TypeVar("S", bound=Component)

Outcome = float | str | tuple[float, float] | None
"""The value of one turn; the reason why it has none; the value and standard deviation of a reward
model that gives a distribution; or None, where the component does not apply to the turn."""


@dataclass(frozen=True, slots=True)
class Source(Generic[S]):
    """A file of code or the weights of a model, which a component reads beside its settings."""

    key: str
    """The setting that names it. The component reads nothing where the setting is None."""
    digest: Callable[[str], str | None]
    """Hash of the contents at this path; None where there is no file."""
    check: Callable[[S, str, Turn | None], None]
    """Raise InputError where the component cannot work. Takes the settings, their key in the
    configuration, and a turn of the training data (None: there is none)."""
    open: Callable[[S], None]
    """Load what the component reads, so that no scoring call has to."""
    tries: bool = False
    """Whether `check` runs it on that turn."""
    pin: Callable[[str], str] | None = None
    """The path with the version that lies there now, so that it never means another one
    (`reward_service/pins.py`); InputError where the path has a version already and another one lies
    there. None: it has no versions."""

    def path(self, section: S) -> str | None:
        path: str | None = getattr(section, self.key)
        return path


@dataclass(frozen=True, slots=True)
class RewardComponent(Generic[S]):
    """One kind of reward. `score` takes the settings and some comparisons, and gives a value for
    each of them."""

    section: type[S]
    score: Callable[[S, Compared], np.ndarray | Sequence[Outcome]]
    """float64 [comparisons], or where `by_turn`, an outcome for each comparison."""
    range: tuple[float, float] | None = (0.0, 1.0)
    """Ends of the range at which a value counts as saturated. None: not known."""
    may_not_apply: bool = False
    """Whether nan says that the component does not apply to a turn. Otherwise the turn fails."""
    by_turn: bool = False
    """Whether `score` says itself which turns fail. Then it is called once, for the turns that
    have not failed already. Otherwise an exception fails the turns at fault, which are found by
    dividing the batch."""
    source: Source[S] | None = None

    def reads(self, section: S) -> str | None:
        """The path that the component reads beside its settings, where it reads any."""
        return None if self.source is None else self.source.path(section)
