"""A run's rewards keep to the weights that it was started with, whatever is saved there later."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray

from common.config.components import Cosine, ModelReward
from common.config.locations import is_folder, split_pin
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Turn
from common.failures import InputError
from common.storage.checkpoint import save_checkpoint
from common.storage.run_directory import RunDirectory
from learner.resume import with_pinned_models
from reward_service.contents import contents
from reward_service.pins import pinned
from reward_service.pool import RewardPool
from reward_service.reward_models.serving import model_rewards, open_model, require_model
from reward_service.reward_models.versions import weights_digest
from tests.local_preferences import text_model
from tests.local_source import tiny_run

EMBEDDING = np.eye(16, dtype=np.float32)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TURN = Turn([2], [3], [-1.0], [3], query="what about tea", answer="gladly it is tea", reference="x")
EPISODES = [Episode("e", "e", 0, (TURN, TURN), 0)]


def rewards(path: str) -> Rewards:
    mix = RewardMix(
        bleu=None, cosine=None, length=None, recall=None,
        models=(ModelReward(name="quality", path=path),),
    )  # fmt: skip
    return Rewards(single=mix, cumulative=mix, long_term=mix)


def path_in(settings: Rewards) -> str:
    return settings.cumulative.models[0].path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two reward models that score alike answers differently."""
    folder = tmp_path_factory.mktemp("models")
    return [text_model(folder / str(levels), "bert", levels) for levels in (1, 3)]


def save(run: RunDirectory, step: int, model: str) -> str:
    return save_checkpoint(
        run, step, lambda folder: shutil.copytree(model, folder, dirs_exist_ok=True) and None, {}, 1
    )


@pytest.fixture
def run(tmp_path: Path, models: list[str]) -> RunDirectory:
    directory = RunDirectory(str(tmp_path), "judge")
    save(directory, 3, models[0])
    weights_digest.cache_clear()
    return directory


def test_each_name_of_a_run_is_pinned_to_its_checkpoint_and_the_pin_is_read_back(
    run: RunDirectory,
) -> None:
    where = f"{run.path()}/checkpoints/step_00000003"
    for name in (run.path(), f"{run.path()}/checkpoints/latest", where):
        once = pinned(rewards(name))
        place, version = split_pin(path_in(once))
        assert (place, version) == (where, weights_digest(where))
        assert pinned(once) == once
        assert Rewards.model_validate_json(once.model_dump_json()) == once
        assert contents(once)["cumulative.quality"] == [where, version]
    assert pinned(Rewards()) == Rewards()


def test_a_folder_is_pinned_to_its_weights_and_a_cosine_model_as_well(
    tmp_path: Path, models: list[str]
) -> None:
    folder = str(tmp_path / "judge")
    shutil.copytree(models[0], folder)
    sentences = Rewards(first_turn=RewardMix(cosine=Cosine(model=folder)))
    once = pinned(rewards(folder))
    assert path_in(once) == f"{folder}@{weights_digest(folder)}"
    assert pinned(sentences).mixes()["first_turn"].cosine == Cosine(model=path_in(once))
    require_model(once.single.models[0])
    shutil.copytree(models[1], folder, dirs_exist_ok=True)
    weights_digest.cache_clear()
    with pytest.raises(InputError, match=f"{folder}: holds other weights than those that are"):
        require_model(once.single.models[0])


def test_a_run_that_goes_on_keeps_its_pin_until_the_checkpoint_is_gone(
    run: RunDirectory, models: list[str], tmp_path: Path
) -> None:
    trained = tiny_run(tmp_path / "trained").model_copy(update={"rewards": rewards(run.path())})
    directory = RunDirectory(str(tmp_path), "trained")
    first = with_pinned_models(trained, directory)
    directory.write_config(first)
    assert path_in(directory.run().rewards) == path_in(first.rewards)
    later = f"{run.path()}/checkpoints/step_00000003"
    shutil.copytree(later, tmp_path / "kept")
    save(run, 6, models[1])
    shutil.copytree(tmp_path / "kept", later)
    assert with_pinned_models(trained, directory).rewards == first.rewards
    named = trained.model_copy(
        update={"rewards": rewards(f"{run.path()}/checkpoints/step_00000006")}
    )
    assert "step_00000006@" in path_in(with_pinned_models(named, directory).rewards)
    shutil.rmtree(later)
    weights_digest.cache_clear()  # a new process has none
    assert "step_00000006@" in path_in(with_pinned_models(trained, directory).rewards)


@pytest.mark.usefixtures("ray_local")
def test_a_worker_that_restarts_scores_with_the_same_weights(
    run: RunDirectory, models: list[str]
) -> None:
    settings = pinned(rewards(run.path()))
    kept = Path(run.path()).parent / "kept"
    shutil.copytree(split_pin(path_in(settings))[0], kept)

    async def main() -> tuple[float | None, float | None]:
        pool = RewardPool(settings, EMBEDDING, ())
        try:
            before = (await pool.score(EPISODES, {}))[0].turns[1].reward
            save(run, 6, models[1])
            shutil.copytree(kept, split_pin(path_in(settings))[0])
            pid = await asyncio.to_thread(
                ray.get, pool.actors[0].apply.remote(lambda _: os.getpid()), timeout=60
            )
            os.kill(pid, signal.SIGKILL)
            after = (await pool.score(EPISODES, {}))[0].turns[1].reward
            assert pool.stats()["restored"] == 1
        finally:
            await pool.close()
        return before, after

    before, after = asyncio.run(asyncio.wait_for(main(), 170))
    (other,) = model_rewards(rewards(run.path()).single.models[0], [EPISODES[0].turns])
    assert before is not None
    assert after == before
    assert isinstance(other, tuple)
    assert other[0] != before, "without a pin the newer checkpoint would score"


def test_a_checkpoint_that_was_replaced_in_its_place_is_refused(
    run: RunDirectory, models: list[str]
) -> None:
    (section,) = pinned(rewards(run.path())).single.models
    save(run, 3, models[1])
    weights_digest.cache_clear()
    with pytest.raises(InputError, match="step_00000003: holds other weights"):
        open_model(section.path, "transformers")


def test_a_hub_name_is_pinned_to_its_commit_where_that_is_known(tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--some--judge"
    (cache / "snapshots" / COMMIT).mkdir(parents=True)
    (cache / "snapshots" / COMMIT / "config.json").write_text("{}")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    code = (
        "from reward_service.reward_models.versions import pin_model;"
        "print(pin_model('some/judge'), pin_model('some/other'))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert told.stdout.split() == [f"some/judge@{COMMIT}", "some/other"]
    assert not is_folder(f"some/judge@{COMMIT}")
    assert weights_digest(f"some/judge@{COMMIT}") == COMMIT
