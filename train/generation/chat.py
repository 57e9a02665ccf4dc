"""An interactive conversation with the model in the terminal."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from data.base.errors import DataError
from data.examples.forms import Conversation
from train.config.sampling import Sampling
from train.generation.generate import stream_answers
from train.generation.questions import as_question, encode, encode_one

if TYPE_CHECKING:
    from train.generation.open_model import Opened

NEW, EXIT = "/new", "/exit"


def chat(
    opened: "Opened",
    sampling: Sampling,
    system_prompt: str | None,
    read: Callable[[], str],
    write: Callable[[str], None],
) -> None:
    """Run a conversation until `read` raises EOFError or returns "/exit". If `read` returns "/new", a new conversation
    starts. ^C ends an answer, not the chat."""
    beginning = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages = list(beginning)
    # If there is no chat template, fail before the user has typed anything.
    encode_one(as_question("?", chat=True, system_prompt=system_prompt), opened.tokenizer)
    turn = 0
    while True:
        try:
            line = read().strip()
        except EOFError:
            return
        if line == EXIT:
            return
        if line == NEW:
            messages = list(beginning)
        if line in ("", NEW):
            continue
        messages.append({"role": "user", "content": line})
        try:
            (prompt,) = encode([Conversation([*messages, {"role": "assistant", "content": ""}])], opened, sampling)
        except DataError as error:
            write(f"{error}; {NEW} starts a new conversation\n")
            messages.pop()
            continue
        # The seeds of all turns are derived from the same seed, but each turn draws different random numbers.
        text = _answer(opened, prompt, replace(sampling, seed=(sampling.seed + turn) % 2**32), write)
        turn += 1
        # An empty answer is removed with its question, because a chat template may reject an empty message.
        messages.append({"role": "assistant", "content": text}) if text.strip() else messages.pop()


def _answer(opened: "Opened", prompt: Sequence[int], sampling: Sampling, write: Callable[[str], None]) -> str:
    """Write the answer, and return it. If ^C is pressed, return the part that has been written so far."""
    text = ""
    try:
        for _, piece, _ in stream_answers(opened.decoder, opened.tokenizer, [prompt], sampling, opened.stop_token_ids):
            text += piece
            write(piece)
    except KeyboardInterrupt:
        pass
    write("\n")
    return text
