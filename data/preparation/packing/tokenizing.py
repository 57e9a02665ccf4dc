"""The recipe (see recipe.py) for rows of tokens: workers convert chunks to documents, and the parent process converts
windows of documents to rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.base.errors import TemplateError
from data.base.problems import Place
from data.config.dataset import DatasetConfig
from data.examples.examples import Problem, Reading, read_examples
from data.examples.forms import Conversation, Example, TokenTurns
from data.mds.row import COLUMNS, DTYPES
from data.preparation.packing.documents import Documents, Spooled, to_parent
from data.preparation.packing.recipe import Converted, Tally, Task, places_of
from data.preparation.packing.rows import rows_of
from data.sources.source import Source
from data.tokenization.chat import Document, fit, tokenize
from data.tokenization.hf_tokenizer import MOST_BYTES
from data.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Tokenizing:
    """Converts chunks to rows of tokens."""

    source: Source
    preprocess: Callable[[Any], Any] | None
    tokenizer: Tokenizer
    config: DatasetConfig
    spool: Path
    """The folder for token arrays that are too large to send through a pipe."""

    def columns(self, form: str) -> dict[str, str]:
        """The MDS columns of the rows."""
        return COLUMNS

    def read(self, task: Task) -> Converted:
        """Runs in a worker. Raises the same errors as the source and the tokenizer."""
        reading, tally = Reading(form=task.form, first_place=task.first_place), Tally()
        fitted: list[Document] = []
        places: list[Place] = []
        for place, example in read_examples(self.source.rows(task.chunk), self.preprocess, reading):
            if task.check_only and not self._can_refuse(example):
                continue
            try:
                result = self._fit(example, tally)
            except TemplateError as error:
                raise TemplateError(f"{place}: {error}") from None
            if isinstance(result, Problem):
                reading.n_valid -= 1
                reading.add(place, [result])
            elif isinstance(result, Document):
                fitted.append(result)
                places.append(place)
        content = self._join(fitted, places) if fitted and not task.check_only else None
        return Converted(size=task.chunk.size, reading=reading, tally=tally, content=content)

    def _can_refuse(self, example: Example) -> bool:
        """Whether tokenization may find a problem in this example."""
        if isinstance(example, Conversation | TokenTurns) or self.config.excess_length == "error":
            return True
        # A text may be too large for its tokenizer.
        return any(len(text) > MOST_BYTES // 4 for text in vars(example).values())

    def _fit(self, example: Example, tally: Tally) -> Document | Problem | None:
        document = tokenize(example, self.tokenizer, self.config)
        result = document if isinstance(document, Problem) else fit(document, self.config)
        if isinstance(document, Problem) or isinstance(result, Problem):
            return result if isinstance(result, Problem) else None
        n_tokens = len(document.tokens)
        tally.tokens_in += n_tokens
        tally.document_lengths[str(1 << (n_tokens.bit_length() - 1))] += 1
        if isinstance(result, str):
            tally.dropped[result] += 1
            tally.tokens_dropped += n_tokens
            return None
        tally.examples_kept += 1
        tally.tokens_kept += len(result.tokens)
        tally.examples_truncated += len(result.tokens) < n_tokens
        tally.tokens_truncated += n_tokens - len(result.tokens)
        return result

    def _join(self, documents: list[Document], places: list[Place]) -> Documents | Spooled:
        are_texts = documents[0].is_text
        tokens = np.concatenate([document.tokens for document in documents])
        # If all ids fit into 16 bits, uint16 halves the size of the messages to the parent process and of the window in
        # the parent process.
        tokens = tokens.astype(np.min_scalar_type(self.tokenizer.vocab_size - 1), copy=False)
        nothing = np.empty(0, dtype=DTYPES["loss_mask"])
        joined = Documents(
            tokens=tokens,
            loss_mask=nothing if are_texts else np.concatenate([document.loss_mask for document in documents]),
            lengths=np.array([len(document.tokens) for document in documents], dtype=DTYPES["lengths"]),
            are_texts=are_texts,
            places_D2=places_of(places),
        )
        return to_parent(joined, self.spool)

    def samples(self, window: list[Documents], tally: Tally) -> Iterator[tuple[bytes, np.ndarray]]:
        """The rows of the window, each with at most max_seq_len tokens, and the numbers of their documents."""
        return ((row.encode(), documents) for row, documents in rows_of(window, self.config, tally))
