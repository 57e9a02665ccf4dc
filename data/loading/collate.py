"""Convert rows to the tensors of a batch."""

from collections.abc import Sequence

import numpy as np
import torch

from data.mds.row import IGNORED, Row

NO_DOCUMENT = -1
"""The document id of padding tokens."""

Batch = dict[str, torch.Tensor]


def collate(rows: Sequence[Row | None], max_seq_len: int, pad_token_id: int) -> Batch:
    """Returns int64 tensors of shape [rows, max_seq_len]. A row that is None becomes a row of padding.

    `input_ids` are padded on the right. `labels` are shifted: the label at a position is the next token if that token
    is trained on and belongs to the same document, else -100. `document_ids` are 0, 1, 2, ... in each row, and -1 for
    padding.
    """
    shape = (len(rows), max_seq_len)
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    document_ids = np.full(shape, NO_DOCUMENT, dtype=np.int64)
    for place, row in enumerate(rows):
        if row is None:
            continue
        n = len(row.tokens)
        ids = np.repeat(np.arange(len(row.lengths)), row.lengths)
        trained = (row.loss_mask[1:] != 0) & (ids[1:] == ids[:-1])
        input_ids[place, :n] = row.tokens
        labels[place, : n - 1] = np.where(trained, row.tokens[1:], IGNORED)
        document_ids[place, :n] = ids
    named = {"input_ids": input_ids, "labels": labels, "document_ids": document_ids}
    return {name: torch.from_numpy(array) for name, array in named.items()}
