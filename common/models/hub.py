"""Models by folder or hub name: what is said where there is nothing that transformers opens, or
where weights do not fit their model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from common.failures import InputError

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
SHOWN_KEYS = 3
"""Keys of weights that a refusal names."""


def require_nameable(where: str, name: str) -> None:
    """Raises InputError for a name that only a folder could have, and there is none: asking the hub
    for it would take half a minute to say so."""
    if not Path(name).is_dir() and (
        Path(name).is_absolute() or not HUB_NAME.fullmatch(name) or Path(name).parent.is_dir()
    ):
        raise InputError(where, "does not exist")


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Errors of transformers as one sentence that names `where`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as unreadable:
        raise InputError(
            where, f"is nothing that transformers opens: {' '.join(str(unreadable).split())[:200]}"
        ) from unreadable


def pretrained(
    opener: Any,
    where: str,
    name: str,
    revision: str,
    is_new: Callable[[Any, str], bool] = lambda model, key: False,
    **given: Any,
) -> Any:
    """The model that an auto class of transformers opens. Raises InputError naming `where` and the
    first weights that are not there or have another shape: transformers would draw them.

    is_new: whether a weight, by its key, of the model opened may be drawn, as that of a new head.
    Tied weights and buffers are never missing.
    """
    with naming(where), _quiet():
        model, found = opener.from_pretrained(
            name,
            revision=revision,
            output_loading_info=True,
            # So that each is named, and not only that there are some.
            ignore_mismatched_sizes=True,
            **given,
        )
    missing = sorted(key for key in found["missing_keys"] if not is_new(model, key))
    if missing:
        raise InputError(where, f"its weights lack {_some(missing)}, which its model has")
    other = sorted(
        f"{key} ({_shape(held)}, the model {_shape(own)})"
        for key, held, own in found["mismatched_keys"]
        if not is_new(model, key)
    )
    if other:
        raise InputError(where, f"its weights have other shapes than its model: {_some(other)}")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a bar and a table of weights: what does not fit is said in one sentence."""
    # Here and not at the top: it takes long to import.
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def require_weights(
    opener: Any,
    where: str,
    name: str,
    is_new: Callable[[Any, str], bool] = lambda model, key: False,
    **given: Any,
) -> None:
    """Refuse weights in a folder as `pretrained` does, without reading what they hold. A hub name
    passes: its weights may not be here yet."""
    if Path(name).is_dir():
        pretrained(opener, where, name, "main", is_new, device_map="meta", **given)


def _shape(size: Any) -> str:
    return "×".join(str(each) for each in size)


def _some(keys: list[str]) -> str:
    more = len(keys) - SHOWN_KEYS
    return ", ".join(keys[:SHOWN_KEYS]) + (f" and {more} more" if more > 0 else "")
