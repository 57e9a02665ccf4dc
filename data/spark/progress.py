"""Progress bars of Spark jobs."""

import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from data.base.sizes import progress_bar

if TYPE_CHECKING:
    from pyspark import SparkContext

POLL = 0.5
"""Seconds between updates."""
DELAY = 2
"""Seconds before a bar appears."""
MININTERVAL = 0.5 if sys.stderr.isatty() else 30.0
"""Seconds between updates of the bar. Updates are rare if the output goes to a log file."""


@contextmanager
def task_bar(context: "SparkContext", desc: str) -> Iterator[None]:
    """Show the number of completed tasks of all jobs that are started in the block."""
    group, ended = f"dropless-{uuid.uuid4().hex}", threading.Event()
    context.setJobGroup(group, desc)
    bar = progress_bar(desc, None, unit="tasks", delay=DELAY, mininterval=MININTERVAL)

    def poll() -> None:
        while not ended.wait(POLL):
            try:
                done, total = _tasks(context, group)
            except Exception:  # Java has ended, which the block reports
                return
            bar.total = total or None
            bar.update(done - bar.n)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        bar.close()


def _tasks(context: "SparkContext", group: str) -> tuple[int, int]:
    """Number of completed tasks, and of all tasks that are known at present."""
    done = total = 0
    tracker = context.statusTracker()
    for job in tracker.getJobIdsForGroup(group):
        info = tracker.getJobInfo(job)
        for stage in info.stageIds if info is not None else ():
            of_stage = tracker.getStageInfo(stage)
            if of_stage is not None:
                done, total = done + of_stage.numCompletedTasks, total + of_stage.numTasks
    return done, total
