"""The stack traces of a process's threads, written by one thread while the other threads may be blocked."""

import faulthandler
import sys
import time
from pathlib import Path
from threading import main_thread
from types import FrameType

FOLDER = "stacks"
"""The subfolder of the save folder that contains stack traces."""


def write_stacks(folder: Path | None, rank: int, headline: str) -> None:
    """Write all stack traces to stacks/rankN.txt in the folder, or to stderr if folder is None. Raises OSError."""
    if folder is None:
        sys.stderr.write(f"stacks of rank {rank}: {headline}\n")
        sys.stderr.flush()
        faulthandler.dump_traceback(2, all_threads=True)
        return
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    with (folder / FOLDER / f"rank{rank}.txt").open("w") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank}: {headline}\n\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)


def main_thread_place() -> tuple[str, bool]:
    """Return the innermost function of the main thread, and whether it waits for other ranks in a collective."""
    ident = main_thread().ident
    frame = sys._current_frames().get(ident) if ident is not None else None
    if frame is None:
        return "", False
    code = frame.f_code
    return f"{code.co_name} ({Path(code.co_filename).name}:{frame.f_lineno})", _is_in_a_collective(frame)


def _is_in_a_collective(frame: FrameType) -> bool:
    """Whether the frame is in torch.distributed, which includes FSDP and the collectives."""
    return "/torch/distributed/" in frame.f_code.co_filename.replace("\\", "/")
