"""A whole run: prepare, then stage after stage from wherever the last checkpoint left it, then the
summary.

This is the driver. It owns the recorder and, for MRL, the rollout half; the learner group comes and
goes, and finds its way back from checkpoints alone. Everything the driver decides is a function of
the run directory, so a driver that was killed is simply started again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from common.actors import resources
from common.config.run import Run
from common.data.conversations import value_counts
from common.data.corpus import Corpus
from common.data.datasets.table import load_corpus
from common.episode import Episode, Task
from common.failures import DataFailure, Drained, EngramError, InputError
from common.storage.checkpoint import Checkpoint
from common.storage.lease import hold
from common.storage.run_directory import RunDirectory
from common.telemetry.logs import setup_logging
from common.telemetry.metrics import Metrics
from common.telemetry.progress import Progress
from common.telemetry.prometheus import require_port
from common.telemetry.trackers import require_trackers
from learner.evaluation.evaluate import evaluate, evaluation_rows, training_figures
from learner.evaluation.memorisation import memorised
from learner.evaluation.retention import most_frequent_figure
from learner.evaluation.transcripts import transcripts
from learner.group_watch import GroupWatch, show_notes
from learner.interrupts import Interrupts, counted
from learner.learner_thread import LEARNER_THREAD
from learner.metrics import record_evaluation, record_training
from learner.parallel.group import Job, launch
from learner.recorder import RecorderClient
from learner.resume import with_pinned_models
from learner.rollout_group import RolloutGroup
from learner.setup import newest, prepare
from learner.stages.epochs import with_steps
from learner.stages.planning import stages_by_group
from learner.stages.sequence import is_finished, run_stages
from learner.summary import Summary, last_status
from learner.training_state import Position, TrainingState

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
GOES_ON = "the same command goes on from there"


def train(run: Run, progress: Progress, directory: RunDirectory | None = None) -> dict[str, Any]:
    """Run or resume `run` on the connected Ray cluster; returns the summary that is also in
    RUN/summary.json.

    directory: of the run, from a caller that holds its lease already (`common/storage/lease.py`);
    None: take the lease for as long as this lasts.
    Raises InputError where the configuration does not fit the data or the run that is there, or
    another driver holds the run; LeaseLost where one has taken it over; Drained after an interrupt
    at any moment, InfraFailure where restarts are used up.
    """
    if directory is not None:
        return go(make_ready(run, directory, progress), progress)
    where = RunDirectory(run.runs, run.name)
    with as_drained() as interrupts, interrupts.at_once(), hold(where, progress) as held:
        return go(make_ready(run, held, progress), progress)


@dataclass(frozen=True)
class Ready:
    """A run before its first actor: everything that the driver reads and writes until then is
    done."""

    run: Run
    directory: RunDirectory
    corpus: Corpus
    checkpoint: Checkpoint
    started: float
    """Moment of `time.monotonic` at which the driver began."""


def make_ready(run: Run, directory: RunDirectory, progress: Progress) -> Ready:
    """Read the data and set the run up, or find where it goes on. Needs no cluster, so that what
    is wrong is said before one starts; raises as `train` does."""
    started = time.monotonic()
    with as_drained() as interrupts, interrupts.at_once():
        setup_logging("driver", directory)
        require_port(run.metrics.host, run.metrics.port)
        require_trackers(run)
        run = with_pinned_models(run, directory)
        with progress.doing(f"reading the data of {run.name}"):
            corpus = load_corpus(run.data, run.seed)
            run = with_steps(run, corpus, directory)
        checkpoint = prepare(run, directory, corpus, progress)
        return Ready(run, directory, corpus, checkpoint, started)


def go(ready: Ready, progress: Progress) -> dict[str, Any]:
    """The rest of `train`, on the connected cluster."""
    with as_drained() as interrupts, interrupts.at_once():
        return train_or_resume(ready, progress, interrupts)


@contextmanager
def as_drained() -> Iterator[Interrupts]:
    """Counts interrupts, and turns one that breaks the block off into Drained."""
    try:
        with counted() as interrupts:
            yield interrupts
    except KeyboardInterrupt:
        raise Drained(f"stopped; {GOES_ON}") from None


def train_or_resume(ready: Ready, progress: Progress, interrupts: Interrupts) -> dict[str, Any]:
    run, directory, corpus, checkpoint = (
        ready.run,
        ready.directory,
        ready.corpus,
        ready.checkpoint,
    )
    if checkpoint.step:
        progress.note(
            f"run {run.name} ({last_status(directory)}) goes on from step {checkpoint.step}"
        )
    summary = Summary(run, directory, ready.started)
    # Of this driver alone: actors of one that was killed may be there for seconds yet.
    assert directory.term is not None, "a caller that gives the directory holds its lease"
    namespace = f"{resources.namespace(run)}-{directory.term.owner[:8]}"
    recorder = RecorderClient.start(run, directory, namespace, checkpoint.step)
    progress.note(f"run {run.name}: metrics at {recorder.url()}, files in {directory.path()}")
    if checkpoint.step:
        metrics = Metrics()
        metrics.record("run/resumes", 1)
        recorder.observe(metrics.drain())
    status = "failed"
    try:
        summary.write("running")
        for indices in stages_by_group(run.stages):
            left = [index for index in indices if is_left(checkpoint, index, run, summary)]
            for index in indices[: len(indices) - len(left)]:
                summary.refresh(index)
            if not left:
                continue
            job = Job(run, directory, left[0], namespace, following=len(left) - 1)
            with summary.stage(left[0]):
                if run.stages[left[0]].needs_rollout:
                    run_rl(job, checkpoint, corpus, recorder, progress, summary)
                else:
                    run_group(job, recorder, progress, summary)
            checkpoint = newest(directory)
            if not is_finished(checkpoint, left[-1], run.stages[left[-1]]):
                raise Drained(f"stopped at step {checkpoint.step}; {GOES_ON}")
            # one that came in the last step must not begin the next stage
            interrupts.check()
        status = "done"
    except (Drained, KeyboardInterrupt):
        status = "stopped"
        raise
    finally:
        try:
            with counted():  # a first interrupt must not keep the summary from being written
                written = summary.write(status)
        finally:
            recorder.close()
    return written


def is_left(checkpoint: Checkpoint, index: int, run: Run, summary: Summary) -> bool:
    """Whether stage number `index` is to be trained yet, or evaluated: the run may stand right
    after an MRL stage whose driver was stopped or killed."""
    if not is_finished(checkpoint, index, run.stages[index]):
        return True
    return (
        run.stages[index].needs_rollout
        and TrainingState.of(checkpoint).stage == index
        and not summary.evaluated("after_mrl", index)
    )


def run_rl(
    job: Job,
    checkpoint: Checkpoint,
    corpus: Corpus,
    recorder: RecorderClient,
    progress: Progress,
    summary: Summary,
) -> None:
    """The MRL stage between two evaluations on held-out conversations, all with the same rollout
    workers.

    Each of the three is done where the run directory lacks it. The evaluation before MRL is that of
    a run's first MRL stage.
    """
    stages = job.run.stages
    first = next(index for index, stage in enumerate(stages) if stage.needs_rollout)
    with RolloutGroup(
        job, checkpoint, corpus, lambda: show_notes(recorder.report(), progress)
    ) as half:
        untrained = Position.of(checkpoint, job.stage).in_stage == 0
        if job.stage == first and untrained and not summary.evaluated("before_mrl", job.stage):
            evaluate_stage("before_mrl", half, checkpoint, corpus, recorder, progress, summary)
        elif job.stage == first and "before_mrl" not in summary.value["retention"]:
            progress.note(
                "the summary has no evaluation before MRL, which has begun: it cannot be made "
                "any more"
            )
        if not is_finished(checkpoint, job.stage, stages[job.stage]):
            summary.discard_evaluation("after_mrl", job.stage)
            run_group(job, recorder, progress, summary, half)
        after = newest(job.directory)
        if is_finished(after, job.stage, stages[job.stage]):
            evaluate_stage("after_mrl", half, after, corpus, recorder, progress, summary)


def evaluate_stage(
    name: str,
    half: RolloutGroup,
    checkpoint: Checkpoint,
    corpus: Corpus,
    recorder: RecorderClient,
    progress: Progress,
    summary: Summary,
) -> None:
    """Figures of `checkpoint` as `name` ("before_mrl", "after_mrl") in the summary, written at
    once: a driver that is killed the next moment need not, and of "before_mrl" could not, measure
    it again. The controls are those of the weights after MRL."""
    run, metrics, values = half.job.run, Metrics(), value_counts(corpus.train)
    rows = evaluation_rows(corpus.eval, run.evaluation.episodes)
    progress.note(f"evaluating {name.replace('_', ' ').replace('mrl', 'MRL')}")

    def play(tasks: list[Task]) -> list[Episode]:
        return half.play(checkpoint, tasks)

    found = evaluate(play, rows, run.seed, values)
    record_evaluation(found, metrics)
    recorder.keep(f"{name}: {transcripts(found.episodes, values)}")
    summary.keep_figures(name, found)
    if name == "before_mrl":
        recorder.observe(metrics.drain())
    else:
        training = training_figures(play, corpus.train, run.seed, values)
        record_training(training, metrics)
        metrics.record("run/stage", half.job.stage)
        stage = run.stages[half.job.stage].stage
        recorder.observe_last(
            metrics.drain(), stage, checkpoint.step, TrainingState.of(checkpoint).metrics
        )
        summary.keep_controls(found, most_frequent_figure(values, rows), training)
        warning = memorised(training, found)
        summary.keep_warnings([warning] if warning else [])
        if warning:
            progress.note(warning)
        show_notes(recorder.report(), progress)
    summary.keep_evaluation(name, half.job.stage)


def run_group(
    job: Job,
    recorder: RecorderClient,
    progress: Progress,
    summary: Summary,
    half: RolloutGroup | None = None,
) -> None:
    """Run the learner group of a job's stages while this thread shows progress, watches for stalls
    and takes an interrupt.

    Ctrl-C asks the ranks to stop at their next step; they leave a checkpoint. A second one ends the
    driver at once.
    """
    failures: list[BaseException] = []
    # Not `thread.join` and `is_alive`: an interrupt inside join makes Python 3.11 take a running
    # thread for an ended one.
    ended = threading.Event()

    def fit() -> None:
        try:
            launch(run_stages, job)
        except BaseException as error:  # noqa: BLE001 - carried to the driver's own thread and raised there
            failures.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=fit, name=LEARNER_THREAD, daemon=True)
    thread.start()
    stopping, watch = False, GroupWatch(job, recorder, progress, summary, half)
    with counted() as interrupts:
        while not ended.wait(POLL_SECONDS):
            if interrupts.count and not stopping:
                stopping = True
                progress.note("stopping at the next step; interrupt again to end at once")
                recorder.request_stop()
                if half is not None:
                    half.stop_waiting()
            watch.look()
    report = watch.show()
    if report.failure is not None or failures:
        job.directory.require_lease()  # if it is lost, that is why they failed
    if report.failure is not None:
        raise rebuilt(report.failure)
    if failures:
        raise failures[0]
    last = job.stage + job.following
    finished = is_finished(newest(job.directory), last, job.run.stages[last])
    if interrupts.count and (not stopping or finished):
        raise KeyboardInterrupt  # the group is done: what would come after it must not begin


def rebuilt(failure: tuple[str, str, str, str]) -> EngramError:
    """The failure that a rank recorded, as the type it had."""
    kind, where, what, traceback = failure
    if kind == InputError.__name__:
        return InputError(where, what)
    if kind == Drained.__name__:
        return Drained(f"{what}; {GOES_ON}")
    log.error("a learner rank failed:\n%s", traceback)
    return DataFailure(f"{kind}: {what}")
