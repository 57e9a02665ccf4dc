"""Known warnings of libraries that users cannot act on; all other warnings are shown."""

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
"""Patterns for the beginning of messages of Composer, torch and transformers about deliberate choices. Earlier versions
of transformers need the deprecated `past_key_values`."""


def silence_expected_warnings() -> None:
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message=message)


def silence_transformers() -> None:
    """Hide its progress bar for loading weights, and its log of the deprecated argument."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
