"""The columns of an MDS folder's samples, which show whether they are rows or have to be prepared first."""

COLUMNS = {"tokens": "ndarray:int32", "loss_mask": "ndarray:uint8", "lengths": "ndarray:int32"}
"""Of the rows that we write: the row's tokens, which of them are trained on, and the lengths of its documents."""
ROW_FORMS = (tuple(COLUMNS), ("input_ids", "labels"), ("tokens",))
"""Columns of samples that are rows already."""
TEXT_FORMS = (("prompt", "response"), ("prompt", "completion"), ("messages",), ("turns",), ("text",))
"""Columns of samples that have to be prepared."""
