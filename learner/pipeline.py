"""A whole run: prepare, then stage after stage from wherever the last checkpoint left it, then the summary.

This is the driver. It owns the recorder and, for MRL, the rollout half; the learner group comes and goes, and finds its way back from
checkpoints alone. Everything the driver decides is a function of the run directory, so a driver that was killed is simply started again.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from common.checkpoint import Checkpoint
from common.config.schema import MRL, Run
from common.data.sources import Corpus, load_corpus
from common.failures import DataFailure, Drained, EngramError, InputError
from common.logs import setup_logging
from common.metrics import Metrics
from common.progress import Progress
from common.run_directory import RunDirectory
from learner.curriculum import stage_steps
from learner.evaluate import most_frequent_recall, retention
from learner.figures import record_retention
from learner.group import Job, Loop, launch
from learner.interrupts import counted
from learner.prepare import newest, prepare
from learner.recorder import RecorderClient, Report
from learner.rollout_half import RolloutHalf
from learner.stages.mrl import mrl_loop
from learner.stages.supervised import supervised_loop
from learner.summary import Summary

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
STALL_SECONDS = 120.0
"""Without any report for so long, the driver says what every actor is doing."""


def train(run: Run, progress: Progress) -> dict[str, Any]:
    """Run or resume `run` on the connected Ray cluster; returns the summary that is also in RUN/summary.json.

    Raises InputError where the configuration does not fit the data or the run that is there, Drained after an interrupt, InfraFailure where
    restarts are used up.
    """
    started = time.monotonic()
    directory = RunDirectory(run.runs, run.name)
    setup_logging("driver", 0, directory)
    corpus = load_corpus(run.data, run.seed)
    checkpoint = prepare(run, directory, corpus, progress)
    summary = Summary(run, directory)
    namespace = f"engram-{run.name}"
    recorder = RecorderClient.start(run, directory, namespace, checkpoint.step)
    progress.note(f"run {run.name}: metrics at {recorder.url()}, files in {directory.path()}")
    if checkpoint.step:
        metrics = Metrics()
        metrics.record("run/resumes", 1)
        recorder.observe(metrics.drain())
    status = "failed"
    try:
        for index, stage in enumerate(run.stages):
            if is_finished(checkpoint, index, stage):
                continue
            job = Job(run, directory, index, namespace)
            begun = time.monotonic()
            if isinstance(stage, MRL):
                run_mrl(job, checkpoint, corpus, recorder, progress, summary)
            else:
                run_stage(supervised_loop, job, recorder, progress)
            checkpoint = newest(directory)
            summary.spent(index, stage.stage, time.monotonic() - begun, stage_steps(stage))
            summary.write("running", 0.0)
            if not is_finished(checkpoint, index, stage):
                raise Drained(f"stopped at step {checkpoint.step}; the same command goes on from there")
        status = "done"
    except (Drained, KeyboardInterrupt):
        status = "stopped"
        raise
    finally:
        written = summary.write(status, time.monotonic() - started)
        recorder.close()
    return written


def run_mrl(job: Job, checkpoint: Checkpoint, corpus: Corpus, recorder: RecorderClient, progress: Progress, summary: Summary) -> None:
    """The MRL stage between two evaluations on held-out conversations, all with the same rollout workers."""
    run = job.run
    rows, metrics = corpus.eval[: run.evaluation.episodes], Metrics()
    with RolloutHalf(job, checkpoint, corpus) as half:
        if "before_mrl" not in summary.value["retention"]:
            progress.note("evaluating before MRL")
            recall, counts, played = retention(lambda tasks: half.play(checkpoint, tasks), rows, run.seed)
            record_retention(recall, counts, played, metrics)
            recorder.observe(metrics.drain())
            summary.keep_retention("before_mrl", recall["memory"])
            summary.write("running", 0.0)  # a driver that is killed and resumes within MRL cannot measure it any more
        run_stage(mrl_loop, job, recorder, progress, half)
        after = newest(job.directory)
        if is_finished(after, job.stage, run.stages[job.stage]):
            progress.note("evaluating after MRL")
            recall, counts, played = retention(lambda tasks: half.play(after, tasks), rows, run.seed)
            record_retention(recall, counts, played, metrics)
            recorder.observe(metrics.drain())
            summary.keep_retention("after_mrl", recall["memory"], counts)
            summary.keep_retention("erased", recall["erased"])
            summary.keep_retention("most_frequent", most_frequent_recall(corpus.train, rows))


def run_stage(loop: Loop, job: Job, recorder: RecorderClient, progress: Progress, half: RolloutHalf | None = None) -> None:
    """Run one stage's learner group while this thread shows progress, watches for stalls and takes an interrupt.

    Ctrl-C asks the ranks to stop at their next step; they leave a checkpoint. A second one ends the driver at once.
    """
    stage = job.run.stages[job.stage]
    failures: list[BaseException] = []
    # Not `thread.join` and `is_alive`: an interrupt inside join makes Python 3.11 take a running thread for an ended one.
    ended = threading.Event()

    def fit() -> None:
        try:
            launch(loop, job)
        except BaseException as error:  # noqa: BLE001 - carried to the driver's own thread and raised there
            failures.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=fit, name=f"fit-{stage.stage}", daemon=True)
    progress.stage(stage.stage, stage_steps(stage))
    thread.start()
    stopping, warned = False, 0.0
    with counted() as interrupts:
        while not ended.wait(POLL_SECONDS):
            if interrupts.count and not stopping:
                stopping = True
                progress.note("stopping at the next step; interrupt again to end at once")
                recorder.request_stop()
            report = recorder.report()
            show(report, stage.stage, progress)
            if report.idle_seconds > STALL_SECONDS and time.monotonic() - warned > STALL_SECONDS:
                warned = time.monotonic()
                metrics = Metrics()
                metrics.record("run/watchdog", 1, waiting_for=longest_phase(report))
                recorder.observe(metrics.drain())
                log.warning("nothing was reported for %.0f s; %s", report.idle_seconds, describe(report, half))
    report = recorder.report()
    show(report, stage.stage, progress)
    if report.failure is not None:
        raise rebuilt(report.failure)
    if failures:
        raise failures[0]
    if interrupts.count and not stopping:
        raise KeyboardInterrupt  # it came when the stage was over


def show(report: Report, stage: str, progress: Progress) -> None:
    for note in report.notes:
        progress.note(note)
    if report.stage == stage:
        progress.update(report.done, **report.figures)


def longest_phase(report: Report) -> str:
    """What the rank that has been in its phase for longest is doing."""
    return max(report.phases.values(), key=lambda phase: phase[1], default=("start", 0.0))[0]


def describe(report: Report, half: RolloutHalf | None) -> str:
    """What every actor is doing, and for how long: the first thing to read when a run stands still."""
    parts = [f"{who} in {phase} for {seconds:.0f} s" for who, (phase, seconds) in sorted(report.phases.items())]
    if half is not None:
        parts.append(f"conductor: {half.status()}")
    return "; ".join(parts) or "no actor has said what it is doing"


def rebuilt(failure: tuple[str, str, str, str]) -> EngramError:
    """The failure that a rank recorded, as the type it had."""
    kind, where, what, traceback = failure
    if kind == InputError.__name__:
        return InputError(where, what)
    log.error("a learner rank failed:\n%s", traceback)
    return DataFailure(f"{kind}: {what}")


def is_finished(checkpoint: Checkpoint, index: int, stage: Any) -> bool:
    """Whether the run had finished stage number `index` when the checkpoint was written."""
    at, done = checkpoint.state["stage"], checkpoint.state["done"]
    return bool(at > index or (at == index and done >= stage_steps(stage)))
