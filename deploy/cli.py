"""The `engram` command: reads words, calls one function each, and turns failures into exit codes
and one clear sentence.

Exit codes: 0 done, 1 failed, 2 bad input or config, 75 stopped and resumable. Torch and Ray are
imported inside the commands, so that `--help`, `plan` and a typing error are answered at once.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from common.config.names import BackendName
from common.failures import (
    EXIT_DONE,
    EXIT_FAILED,
    Drained,
    EngramError,
    InfraFailure,
    InputError,
    LeaseLost,
)
from common.version import VERSION
from deploy.command_group import CommandGroup
from deploy.data import app as data_commands
from deploy.doctor.command import app as doctor_commands
from deploy.feedback.command import app as feedback_command
from deploy.job_commands import app as job_commands
from deploy.label_commands import app as label_commands
from deploy.monitoring.command import app as dashboard_command
from deploy.output import echo, tell, tell_traceback
from deploy.train import train as train_run
from deploy.view_commands import app as view_commands

app = typer.Typer(
    name="engram",
    cls=CommandGroup,
    help="Train language models that remember, by reinforcement learning, on a Ray cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data_commands, name="data")
app.add_typer(label_commands, name="label")
app.add_typer(feedback_command)
app.add_typer(job_commands)
app.add_typer(view_commands)
app.add_typer(dashboard_command)
app.add_typer(doctor_commands)

DEMO_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG... [KEY=VALUE]...",
        help="YAML files, composed left to right, then overrides.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of the config's keys."),
]
TakeOver = Annotated[
    bool,
    typer.Option(
        "--take-over",
        help="The run's driver on another host is known to be dead: do not wait for it.",
    ),
]
BackendOption = Annotated[
    BackendName | None,
    typer.Option(help="What computes; without it, the run's `rollout.backend`."),
]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster; without it RAY_ADDRESS, or a local one.")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        echo(f"engram {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and end."
        ),
    ] = False,
) -> None:
    """Options that stand before the name of the command."""


@app.command()
def demo(overrides: Overrides = None, address: Address = None, take_over: TakeOver = False) -> None:
    """The whole pipeline on generated conversations, on this machine, in minutes."""
    train_run([str(DEMO_CONFIG)], overrides or [], address, take_over)


@app.command()
def train(words: Words, address: Address = None, take_over: TakeOver = False) -> None:
    """Train one stage or a list of stages; started again under the same name, a run resumes."""
    train_run(*split(words), address, take_over)


@app.command()
def plan(
    words: Words,
    full: Annotated[
        bool, typer.Option("--full", help="All settings too, batches, and memory by purpose.")
    ] = False,
) -> None:
    """Show what a run would do with its data, and what it needs; starts nothing but reward
    functions and an environment of yours, to try them."""
    from deploy.progress import doing

    with doing("reading the configuration"):
        from common.config.loader import load_run

        run = load_run(*split(words))
    with doing(f"reading the data of {run.name}"):
        from common.data.datasets.table import load_corpus
        from common.storage.run_directory import RunDirectory
        from learner.requirements import require_data, require_possible
        from learner.stages.epochs import with_steps

        require_possible(run)
        corpus = load_corpus(run.data, run.seed)
        run = with_steps(run, corpus, RunDirectory(run.runs, run.name))
        require_possible(run)  # what the number of steps may rule out
        require_data(run, corpus)
    with doing("trying rewards and environment"):
        from reward_service.preflight import require_tried
        from rollout.environments.table import require_environment

        require_tried(run.rewards, corpus.train)
        require_environment(run.environment)
    with doing("measuring the data in tokens, and this machine"):
        from deploy.plan import plan_text
        from deploy.plan_summary import plan_summary

        summary = plan_summary(run, corpus)
    echo(f"{plan_text(run)}\n\n{summary}" if full else summary)


@app.command()
def submit(
    words: Words,
    address: Annotated[str, typer.Option(help="The cluster's job server, http://HOST:8265.")],
    follow: Annotated[bool, typer.Option(help="Show the job's output until it ends.")] = True,
    take_over: TakeOver = False,
) -> None:
    """The same run on a cluster, through Ray Jobs."""
    from deploy.progress import doing

    with doing("reading the configuration"):
        from deploy.submit import submit as submit_run

    raise typer.Exit(submit_run(*split(words), address, take_over=take_over, follow=follow))


@app.command("eval")
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A model checkpoint, or a run for its latest.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="Conversations, or preferences for a reward model; without it, what the run "
            "held out."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
    backend: BackendOption = None,
    carried: Annotated[
        bool,
        typer.Option(help="Also play each conversation from the memory that another one left."),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="All tables: other figures than recall by distance, too.")
    ] = False,
) -> None:
    """Recall by distance and rewards by component; of a reward model, how often and how surely
    it is right."""
    from deploy.progress import open_progress

    progress = open_progress()
    try:
        with progress.doing(f"opening {checkpoint}"):
            from deploy.tables import evaluation_tables, preference_tables
            from learner.evaluation.evaluate import evaluate_checkpoint
            from learner.evaluation.preferences import evaluate_reward_model, is_reward_model

            tell_of_run(checkpoint)
            of_preferences = is_reward_model(checkpoint)
        if of_preferences:
            with progress.doing(f"judging pairs by {checkpoint}"):
                result = evaluate_reward_model(checkpoint, data)
            text = preference_tables(result["preferences"])
        else:
            result = evaluate_checkpoint(checkpoint, data, backend, progress, carried)
            text = evaluation_tables(result, full)
    finally:
        progress.close()
    echo(json.dumps(result) if as_json else text)


@app.command()
def replay(
    run: Annotated[str, typer.Argument(help="A run directory.")],
    episode: Annotated[
        str | None,
        typer.Argument(
            metavar="[EPISODE_ID]",
            help="As in RUN/episodes, such as 4-000100-00003@980; without it, a list.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of sentences.")
    ] = False,
    backend: BackendOption = None,
) -> None:
    """Play one recorded episode again and compare tokens, log-probs, rewards and memory; ends with
    1 where they part. Without an id, list the episodes that can be replayed."""
    from deploy.progress import doing
    from deploy.tables import replay_text, replayable_text

    if episode is None:
        with doing(f"looking for episodes of {run} that can be replayed"):
            from learner.evaluation.replayable import replayable

            tell_of_run(run)
            found = replayable(run)
        echo(json.dumps(found.to_json()) if as_json else replayable_text(found))
        return
    with doing(f"playing {episode} of {run} again"):
        from learner.evaluation.replay import replay as replay_episode

        tell_of_run(run)
        result = replay_episode(run, episode, backend)
    echo(json.dumps(result.to_json()) if as_json else replay_text(result))
    if result.parted is not None:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def episodes(
    run: Annotated[str, typer.Argument(help="A run directory.")],
    worst: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="N with the lowest mean reward, not the latest."),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only those with a failure.")] = False,
    role: Annotated[
        str | None, typer.Option(help="Only those with a turn of this role, such as recall.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many of the latest.")] = 5,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text.")
    ] = False,
) -> None:
    """Print conversations of a run: what was told and asked, answers, and rewards by component."""
    from deploy.progress import doing

    with doing(f"reading episodes of {run}"):
        from common.storage.run_directory import RunDirectory
        from deploy.episodes import Choice, chosen, episodes_text

        choice = Choice(worst, failed, role, limit)  # type: ignore[arg-type]  # checked in there
        found, total = chosen(RunDirectory.existing(run), choice)
    echo(
        json.dumps({"total": total, "episodes": found})
        if as_json
        else episodes_text(found, total, choice)
    )


@app.command()
def bench(
    what: Annotated[
        str, typer.Argument(metavar="rollout|rewards|reward_chaos", help="Which benchmark.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one flat JSON object instead of a table.")
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Also write FOLDER/NAME.json, with machine and commit."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer repeats of less: rough figures sooner.")
    ] = False,
) -> None:
    """Measure this machine: medians over repeats, in minutes."""
    from deploy.bench import run_bench
    from deploy.progress import open_progress
    from deploy.tables import bench_table

    progress = open_progress()
    try:
        figures = run_bench(what, progress, quick, record)
    finally:
        progress.close()
    echo(json.dumps(figures) if as_json else bench_table(what, figures))


@app.command()
def chat(
    checkpoint: Annotated[str, typer.Argument(help="A model checkpoint.")],
    memory: Annotated[
        str | None, typer.Option(help="A saved memory to start from (one safetensors file).")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 answers greedily.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial memory and of sampling.")] = 0,
    backend: BackendOption = None,
) -> None:
    """Talk to a model and see when its memory is being updated."""
    from deploy.chat import chat as talk
    from deploy.chat import open_session
    from deploy.progress import doing

    with doing(f"opening {checkpoint}"):
        tell_of_run(checkpoint)
        opened = open_session(checkpoint, memory, temperature, seed, backend)
    talk(*opened)


def tell_of_run(where: str) -> None:
    """Say on standard error where the run that `where` is, or lies in, is not over."""
    from common.storage.run_directory import RunDirectory
    from learner.evaluation.measure import run_of
    from learner.summary import unfinished

    with suppress(InputError):  # no run, or one with damage that the command may not even meet
        sentence = unfinished(run_of(where) or RunDirectory.existing(where))
        if sentence is not None:
            tell(f"engram: {sentence}")


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """Config files and overrides. A word with "=" is an override, unless a file has that very
    name."""
    overrides = [word for word in words if "=" in word and not os.path.isfile(word)]
    configs = [word for word in words if word not in overrides]
    if not configs:
        raise InputError("command line", "no config file among the arguments")
    return configs, overrides


def one_sentence(failure: EngramError) -> str:
    """A failure on one line; only the traceback of a user's own code, which it may end with, keeps
    its lines."""
    said, begin, trace = str(failure).partition("Traceback (most recent call last):")
    return " ".join(said.split()) + (f" {begin}{trace}" if begin else "")


def run_command(words: list[str]) -> int:
    """Run one command and return its exit code; failures go to standard error."""
    try:
        app(words, prog_name="engram")
    except SystemExit as stop:
        return (
            stop.code
            if isinstance(stop.code, int)
            else EXIT_DONE
            if stop.code is None
            else EXIT_FAILED
        )
    except (InputError, LeaseLost, Drained) as failure:
        # The reader can act on the sentence; a traceback would only bury it.
        tell(f"engram: {one_sentence(failure)}")
        return failure.exit_code
    except InfraFailure as failure:
        # No bug of engram's: who wants its traceback finds it in the run's log.
        from common.telemetry.logs import keep_traceback

        kept = keep_traceback(failure)
        more = f"; the traceback is in {kept}" if kept else ""
        tell(f"engram: {one_sentence(failure)}{more}")
        return failure.exit_code
    except EngramError as failure:
        tell_traceback()
        return failure.exit_code
    except Exception:  # noqa: BLE001 - the last frame of the process: shown in full and turned into its exit code
        tell_traceback()
        return EXIT_FAILED
    return EXIT_DONE
