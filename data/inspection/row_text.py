"""The text of a row for the terminal, with marks for its documents and for the tokens that are trained on."""

from collections.abc import Iterator

import numpy as np
from rich.text import Text

from data.base.console import printable
from data.mds.row import Row
from data.tokenization.tokenizer import Tokenizer


def show_row(number: int, row: Row, tokenizer: Tokenizer, *, marks: bool) -> Text:
    """The row's text with a title for each document. Trained tokens are green, and with `marks` they are also enclosed
    in ⟦ ⟧."""
    text = Text()
    for place, (ids, mask) in enumerate(row.documents()):
        trained = int(np.count_nonzero(mask))
        title = (
            f"── row {number}, document {place + 1} of {len(row.lengths)}: {len(ids):,} tokens, {trained:,} trained ──"
        )
        text.append(f"{title}\n", style="bold cyan")
        for run, is_trained in _runs(ids, mask):
            words = printable(tokenizer.decode(run.tolist()))
            open_mark, close_mark = ("⟦", "⟧") if marks and is_trained else ("", "")
            text.append(f"{open_mark}{words}{close_mark}", style="green" if is_trained else "bright_black")
        text.append("\n")
    return text


def _runs(ids: np.ndarray, mask: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
    """Sequences of consecutive tokens. In each sequence, either all tokens or no tokens are trained on."""
    cuts = np.flatnonzero(np.diff(mask != 0)) + 1
    for run, trained in zip(np.split(ids, cuts), np.split(mask, cuts), strict=True):
        yield run, bool(trained[0])
