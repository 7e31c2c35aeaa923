"""Pins the models that rewards name, so that every worker of a run scores with the same weights.

A run may be started with the path of another run, whose newest checkpoint is another one an hour
later, or with a folder or a hub name whose contents may change. When the run starts, `pinned` puts
the version that is there now into the settings, which are the ones in RUN/config.yaml: the
checkpoint's folder and the hash of its weights, or the commit of a hub name. Whatever opens a
pinned model checks the version first and refuses another one.
"""

from __future__ import annotations

from common.config.components import Component
from common.config.locations import split_pin
from common.config.rewards import Rewards
from common.failures import InputError
from common.storage.checkpoint import FOLDER, LATEST
from reward_service.components.component import Source
from reward_service.components.table import component_of


def pinned(rewards: Rewards, before: Rewards | None = None) -> Rewards:
    """The settings with each model pinned to the version that is there now.

    before: the settings of a run that goes on, pinned already. A model that is named as it was then
    keeps its version where that can still be had. Raises InputError where a checkpoint is broken.
    """
    then = {key: mix.components() for key, mix in before.mixes().items()} if before else {}
    mixes = {}
    for key, mix in rewards.mixes().items():

        def pin(name: str, section: Component, key: str = key) -> Component:
            source = component_of(section).source
            path = source.path(section) if source is not None else None
            if source is None or source.pin is None or path is None:
                return section
            old = then.get(key, {}).get(name)
            kept = source.path(old) if type(old) is type(section) else None
            found = _kept(source, path, kept) if kept is not None else None
            return section.model_copy(update={source.key: found or source.pin(path)})

        mixes[key] = mix.changed(pin)
    return rewards.with_mixes(mixes)


def _kept(source: Source[Component], path: str, before: str) -> str | None:
    """The pinned path `before`, where `path` names the same model and the version is there."""
    place, version = split_pin(before)
    run, folder, _ = place.rpartition(f"/{FOLDER}/")
    names = {place, *((run, f"{run}/{FOLDER}", f"{run}/{FOLDER}/{LATEST}") if folder else ())}
    if version is None or source.pin is None or path not in names:
        return None
    try:
        return source.pin(before)
    except InputError:
        return None
