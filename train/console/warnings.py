"""Warnings of libraries that the user of a run can do nothing about, by name; all others are shown."""

import warnings

EXPECTED = (
    "FSDP2 Config/APIs are experimental",
    "The warmup duration is 0",
    "TypedStorage is deprecated",
    "torch.distributed is disabled, unavailable or uninitialized",
    "Specifying `eval_interval=.*` without an `eval_dataloader`",
    "Setting both `progress_bar` and `log_to_console` both to True",
    "`past_key_values` is deprecated",
    "The current world size",
)
"""Of Composer, torch and transformers (whose earlier versions need the argument), about what was chosen on purpose.
Each is the beginning of a message, as a pattern."""


def silence_expected_warnings() -> None:
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message=message)


def silence_transformers() -> None:
    """Its bars for weights that load in a moment, and its log of the same deprecated argument."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
