"""The watchdog and the heartbeat of this rank, which run from the moment when all ranks are connected until the run
ends."""

import itertools
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from composer.utils import dist
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

from data.base.console import node_logger
from data.base.errors import note_shown_elsewhere
from train.config.supervision import DeadlinesConfig
from train.distributed.failures import failure_of
from train.distributed.rank_store import connect
from train.supervision.events import Events
from train.supervision.exit_codes import RunStopped
from train.supervision.hangs.clock import AwakeClock
from train.supervision.hangs.deadlines import Deadlines
from train.supervision.hangs.peers import Peers, this_process
from train.supervision.hangs.sections import Sections, watched_sections
from train.supervision.hangs.stragglers import Heartbeat
from train.supervision.hangs.watchdog import Watchdog, heartbeat_of

_LOST = re.compile(
    r"onnection (was )?(closed|reset|refused)|roken pipe|remote process (has )?exited|ncclRemoteError|closed by peer"
)
"""Error messages of torch's process groups that mean that another rank has ended."""
_CAUSE, _SHARE, _SHOW, _LEAVE, _END = 10.0, 3.0, 10.0, 8.0, 30.0
"""Time limits in seconds. _CAUSE: for finding the reason why another rank ended. All others: for each part of ending
this rank."""

_runs = itertools.count()


@contextmanager
def watched(config: DeadlinesConfig, folder: Path | None, events: Events) -> Iterator[Sections]:
    """End every rank when a deadline passes, or when a rank is lost or raises an exception. All ranks must enter this
    context.

    An exception is shared with the other ranks, which end with the same message and exit code. If another rank shows
    the exception, data.base.errors.shown_elsewhere returns True for it. RunStopped and SystemExit are not shared.
    """
    clock = AwakeClock()

    def report(message: str) -> None:
        if dist.get_global_rank() == 0:
            events.report("deadline", sections.place.batch, message)
        else:
            node_logger.warning(f"rank {dist.get_global_rank()}: {message}")

    sections = Sections(Deadlines(config), clock, report)
    rank = _Rank(sections, clock, config, folder, events)
    try:
        with watched_sections(sections):
            yield sections
    except BaseException as error:
        rank.failed(error)
        raise
    else:
        rank.leave()
    finally:
        rank.stop()


class _Rank:
    """The watchdog and heartbeat threads of this rank, and the actions of its main thread when the run ends."""

    def __init__(
        self, sections: Sections, clock: AwakeClock, config: DeadlinesConfig, folder: Path | None, events: Events
    ) -> None:
        self._sections, self._number, self._left = sections, itertools.count(), False
        rank, world_size, run = dist.get_global_rank(), dist.get_world_size(), next(_runs)
        members, self.peers = [this_process(rank)], None
        if world_size > 1:
            members = dist.all_gather_object(members[0])
            self.peers = Peers(
                lambda: PrefixStore(f"run{run}", connect()), rank, world_size, beat=self._beat, clock=clock
            )
            self.peers.start()
        self.watchdog = Watchdog(sections, clock, members, self.peers, folder, events, config.heartbeat)
        self.watchdog.start()

    def leave(self) -> None:
        """Announce to the other ranks that this rank ends."""
        self._left = True
        if self.peers is not None:
            self.peers.leave(0, _LEAVE)

    def stop(self) -> None:
        self.watchdog.stop()
        if self.peers is not None:
            self.peers.stop()

    def failed(self, error: BaseException) -> None:
        """Handle an exception of the main thread. Returns only if the caller must report the exception."""
        peers, watchdog = self.peers, self.watchdog
        self._block_if_ending()
        if peers is None:
            return
        if isinstance(error, RunStopped) or not isinstance(error, Exception):
            self.leave()
            return
        if _LOST.search(str(error)):
            watchdog.suspect()
            watchdog.ending.wait(_CAUSE)
            self._block_if_ending()
        mine = failure_of(error, peers.rank)
        watchdog.main_reports.set()
        first = peers.share(mine, _SHARE)
        if first.text != mine.text:
            watchdog.main_reports.clear()
            watchdog.ending.wait(_END)
            self._block_if_ending()
        if first.shown_by == peers.rank:
            peers.mark_shown()
        elif peers.wait_until_shown(_SHOW):
            note_shown_elsewhere(error)
        self.leave()

    def _block_if_ending(self) -> None:
        """Block while another thread ends the process, so that errors caused by the end are not reported."""
        if self.watchdog.ending.is_set():
            time.sleep(_END)

    def _beat(self) -> Heartbeat:
        return heartbeat_of(self._sections, next(self._number), left=self._left)
