"""Generates answers to prompts, in batches."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from data.examples.forms import PromptResponse
from train.config.sampling import Sampling
from train.generation.generate import Answer, stream_answers
from train.generation.questions import Question

if TYPE_CHECKING:
    from train.generation.open_model import Opened


def ask(
    opened: "Opened",
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    batch_size: int,
    on_text: Callable[[int, str], None] | None = None,
) -> Iterator[Answer]:
    """Yield the answers in order. `on_text` is called with the number of a prompt and each new piece of its answer. The
    answers are passed to `on_text` one after the other: the text of later answers of a batch is buffered until the
    earlier answers are complete."""
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        events = stream_answers(
            opened.decoder, opened.tokenizer, batch, sampling, opened.stop_token_ids, first_number=first
        )
        for row, piece, answer in in_order(events, len(batch)):
            if on_text is not None:
                on_text(first + row, piece)
            if answer is not None:
                yield answer


def in_order(events: Iterable[tuple[int, str, Answer | None]], n_rows: int) -> Iterator[tuple[int, str, Answer | None]]:
    """Reorder events so that the events of a row are yielded only after the answers of all previous rows are
    complete."""
    held: list[list[tuple[int, str, Answer | None]]] = [[] for _ in range(n_rows)]
    turn = 0
    for event in events:
        held[event[0]].append(event)
        while turn < n_rows and held[turn]:
            now, held[turn] = held[turn], []
            yield from now
            if now[-1][2] is None:
                break
            turn += 1


def as_json(question: Question, answer: Answer) -> str:
    """A line of the output file: the question, the response, and whether the model or a limit ended the response."""
    asked = (
        {"prompt": question.prompt} if isinstance(question, PromptResponse) else {"messages": question.messages[:-1]}
    )
    ended = "stop" if answer.ended else "length"
    return json.dumps({**asked, "response": answer.text, "finish_reason": ended}, ensure_ascii=False)
