"""The thread that ends a rank when a deadline passes, another rank has failed, or a rank is lost."""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from data.loading import processes
from data.secrets.redaction import redacted
from train.distributed.failures import Failure
from train.supervision.events import Events
from train.supervision.exit_codes import ExitCode
from train.supervision.hangs.clock import AwakeClock
from train.supervision.hangs.deadlines import Deadline, Section
from train.supervision.hangs.peers import Peers, RankProcess
from train.supervision.hangs.sections import Place, Sections
from train.supervision.hangs.stacks import FOLDER, main_thread_place, write_stacks
from train.supervision.hangs.stragglers import SECTION_NAMES, Heartbeat, stragglers

_LOOK = 0.5
"""Seconds between two checks."""
_LOADER_MARGIN = 5.0
"""Extra seconds after a deadline, so that a loader can first report a hanging worker with a more precise message."""
_CONSEQUENCE = 2.0
"""Seconds to wait after another rank has failed, because the main thread of this rank may raise the same error."""
_SHARE, _SHOW, _WRITE, _LEAVE = 3.0, 6.0, 5.0, 6.0
"""Time limits in seconds for each part of ending the process; their sum is 30. They are needed because the store, the
disk or another rank may hang."""
_NAMED = 8
"""Maximum number of ranks listed in a message."""
_SILENT = 4.0
"""Seconds without a heartbeat after which a rank that others wait for counts as unresponsive."""
_GRACE_OF_SERVER = 3.0
"""Seconds to wait after the connection to the store is lost. Rank 0 may have ended normally, and this rank may then end
normally too."""


class Watchdog:
    """The watchdog of one rank. Its thread never raises an exception. The thread ends the process with os._exit."""

    def __init__(
        self,
        sections: Sections,
        clock: AwakeClock,
        members: Sequence[RankProcess],
        peers: Peers | None,
        folder: Path | None,
        events: Events,
        heartbeat: float | None,
    ) -> None:
        """members: the process of each rank. peers: None if there is only one rank. folder: the save folder."""
        self._sections, self._clock, self._members, self._peers = sections, clock, members, peers
        self._folder, self._events, self._heartbeat = folder, events, heartbeat
        self.rank = peers.rank if peers is not None else 0
        self._local = [
            each for each in members if each.machine == members[self.rank].machine and each.rank != self.rank
        ]
        self._disconnected_at: float | None = None
        self._stopped = threading.Event()
        self.main_reports = threading.Event()
        """Set when the main thread has raised an exception and reports this exception itself."""
        self.ending = threading.Event()
        self._suspect = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(2 * _LOOK)

    def suspect(self) -> None:
        """Record that the main thread has lost a connection to another rank, which has probably ended."""
        self._suspect.set()

    def _run(self) -> None:
        while not self._stopped.wait(_LOOK):
            self._clock.tick()
            failure = self._find()
            if failure is not None and self._should_end(failure):
                self.ending.set()
                self._end(failure)

    def _should_end(self, failure: Failure) -> bool:
        """Whether to end this process. The process is not ended if the main thread raises the same failure."""
        if failure.kind == "failed":
            if failure.rank == self.rank:
                return False
            self.main_reports.wait(_CONSEQUENCE)
        return not (self.main_reports.is_set() or self._stopped.is_set())

    def _find(self) -> Failure | None:
        peers = self._peers
        if peers is None:
            return self._overdue()
        if peers.failure is not None:
            return peers.failure
        failure = self._lost_processes() or self._unconnected(peers) or self._silent(peers) or self._overdue()
        return None if failure is None else peers.share(failure, _SHARE)

    def _lost_processes(self) -> Failure | None:
        """Return a failure for ranks on this machine whose processes no longer exist although they did not announce
        their end."""
        gone = [each for each in self._local if not each.exists()]
        if not gone or self._peers is None:
            return None
        self._peers.read_now(_SHARE)  # these ranks may have announced their end in their last heartbeat
        gone = [each for each in gone if not self._has_left(each.rank)]
        if not gone or not self._peers.connected:
            return None  # _unconnected handles the end of rank 0
        names = ", ".join(map(str, gone))
        return self._failure(
            "lost",
            f"{names} no longer exists: the process was killed (by kill -9, or by the kernel because memory ran out: "
            "see dmesg)",
            lost=[each.rank for each in gone],
        )

    def _has_left(self, rank: int) -> bool:
        assert self._peers is not None
        beat = self._peers.beats.get(rank)
        return beat is not None and beat.left

    def _unconnected(self, peers: Peers) -> Failure | None:
        """Return a failure if the process that hosts the store is lost."""
        if peers.connected:
            return None
        now = self._clock()
        if self._disconnected_at is None:
            self._disconnected_at = now
        if now - self._disconnected_at < _GRACE_OF_SERVER:
            return None
        server = self._members[0]
        why = "no longer exists: the process was killed or has ended (see the output of this rank)"
        if server in self._local and server.exists():
            why = "has lost its connections to the other ranks"
        return self._failure("lost", f"{server} {why}", lost=[0])

    def _silent(self, peers: Peers) -> Failure | None:
        limit = _SILENT if self._suspect.is_set() else self._heartbeat
        if limit is None:
            return None
        if self._suspect.is_set():
            peers.read_now(_SHARE)
        if self._clock() - peers.answered > max(limit, 3 * peers.period):
            source = f"no response for {limit:g} s (deadlines.heartbeat)"
            return self._failure("hung", f"{self._described(0)}: {source}", lost=[0])
        silent = self._silent_ranks(peers, max(limit, 3 * peers.period))
        if not silent:
            return None
        names = "; ".join(self._described(rank) for rank in silent)
        return self._failure("hung", f"{names}: no heartbeat for {limit:g} s (deadlines.heartbeat)", lost=silent)

    def _silent_ranks(self, peers: Peers, seconds: float) -> list[int]:
        return [
            rank
            for rank in peers.beats
            if rank != self.rank and not self._has_left(rank) and peers.silence(rank) > seconds
        ]

    def _overdue(self) -> Failure | None:
        """Return a failure if this rank's section exceeded its deadline, unless this rank waits for a rank that is
        within its own deadline."""
        place = self._sections.place
        deadline = overdue_deadline(self._sections, place)
        if deadline is None:
            return None
        behind, silent = [self.rank], []
        if self._peers is not None:
            behind, silent = self._behind(self._peers)
            beats = self._peers.beats
            if not silent and any(self._peers.silence(rank) > 2 * self._peers.period for rank in behind):
                return None  # a later check determines whether such a rank is silent
            if behind and not silent and all(self._is_within_its_deadline(beats.get(rank), place) for rank in behind):
                return None
        names = "; ".join(self._described(rank) for rank in behind[:_NAMED])
        names += f"; and {len(behind) - _NAMED} more" if len(behind) > _NAMED else ""
        text = (
            f"{SECTION_NAMES[place.section]} after batch {place.batch} took longer than {deadline.seconds:.3g} s "
            f"({deadline.source}): " + (f"the run waits for {names}" if names else "all ranks have the same progress")
        )
        return self._failure("hung", text, lost=silent)

    def _behind(self, peers: Peers) -> tuple[list[int], list[int]]:
        """Return the ranks that this rank waits for, and the ranks that do not respond."""
        peers.read_now(_SHARE)
        if self._clock() - peers.answered > max(_SILENT, 3 * peers.period):
            return [0], [0]
        silent = self._silent_ranks(peers, max(_SILENT, 3 * peers.period))
        return stragglers(peers.beats, silent), silent

    def _is_within_its_deadline(self, beat: Heartbeat | None, place: Place) -> bool:
        return beat is not None and beat.section != place.section and not beat.overdue and not beat.left

    def _described(self, rank: int) -> str:
        member, peers = self._members[rank], self._peers
        if rank == self.rank:
            return f"{member}: {heartbeat_of(self._sections, 0)}"
        text = f"{member}, which {processes.state(member.pid)}" if member in self._local else str(member)
        if peers is None or (beat := peers.beats.get(rank)) is None:
            return text
        silence = peers.silence(rank)
        return f"{text}: {f'last heartbeat {silence:.0f} s ago, ' if silence > 2 * peers.period else ''}{beat}"

    def _failure(self, kind: str, text: str, *, lost: Sequence[int] = ()) -> Failure:
        shown_by = next((rank for rank in range(len(self._members)) if rank not in lost), self.rank)
        return Failure(
            rank=self.rank, code=ExitCode.HUNG, text=redacted(text), kind=kind, lost=tuple(lost), shown_by=shown_by
        )

    def _end(self, failure: Failure) -> None:
        """End the process. Does not return."""
        if failure.kind == "hung":
            _at_most(_WRITE, lambda: write_stacks(self._folder, self.rank, failure.text))
        if failure.shown_by == self.rank:
            _at_most(_WRITE, lambda: self._show(failure))
            if self._peers is not None:
                self._peers.mark_shown()
        elif self._peers is not None:
            self._peers.wait_until_shown(_SHOW)
        for each in self._local:
            # A stopped process can only be ended with SIGKILL.
            if (each.rank in failure.lost or processes.is_stopped(each.pid)) and each.exists():
                processes.kill(each.pid)
        _at_most(_WRITE, _kill_children)
        if self._peers is not None:
            self._peers.leave(len(failure.lost), _LEAVE)
        os._exit(failure.code)

    def _show(self, failure: Failure) -> None:
        text = failure.message
        if failure.kind == "hung":
            place = self._folder / FOLDER if self._folder is not None else "stderr of each"
            text += f". The stacks of all ranks that respond are in {place}"
        if failure.kind != "failed":
            text += ". The run ends; with autoresume=true the next start resumes from the newest checkpoint"
        # A single write that bypasses Python's streams, whose locks the main thread may hold.
        begin = "\n" if os.isatty(2) else ""  # start below the live bar
        os.write(2, f"{begin}error: {redacted(text)}\n".encode())
        batch = self._sections.place.batch
        # Record only the last line of a traceback.
        message = redacted(text.splitlines()[-1] if failure.code == ExitCode.DEFECT else text)
        with suppress(Exception):
            self._events.note(batch, any_rank=True, event=failure.kind, message=message)
            if self._events.started:
                self._events.note(batch, any_rank=True, event="end", message=message, outcome="failed")


def overdue_deadline(sections: Sections, place: Place) -> Deadline | None:
    """Return the deadline that the section has exceeded, or None."""
    deadline = sections.deadlines.of(place.section)
    if deadline is None:
        return None
    margin = _LOADER_MARGIN if place.section is Section.DATA else 0.0
    return deadline if sections.age(place) > deadline.seconds + margin else None


def heartbeat_of(sections: Sections, number: int, *, left: bool = False) -> Heartbeat:
    """Return this rank's current heartbeat."""
    place = sections.place
    age = sections.age(place)
    function, waits = main_thread_place() if age > 1 else ("", False)
    return Heartbeat(
        number=number,
        section=place.section,
        batch=place.batch,
        marks=place.marks,
        age=round(age, 1),
        overdue=overdue_deadline(sections, place) is not None,
        function=function,
        waits=waits,
        left=left,
    )


def _kill_children() -> None:
    """Kill loader workers, which would outlive this process."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()


def _at_most(seconds: float, do: Callable[[], object]) -> None:
    """Run `do` in a thread and wait at most `seconds`, because `do` may write to a disk that hangs."""

    def run() -> None:
        with suppress(Exception):
            do()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
