"""Common settings for requests to the Hugging Face hub: time limit and verbosity."""

import contextlib
import logging
from collections.abc import Iterator

REQUEST_SECONDS = 10.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the libraries' warnings about dataset cards, and their progress bars for small files."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels, without_bars = [logger.level for logger in loggers], are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not without_bars:
            enable_progress_bars()


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
