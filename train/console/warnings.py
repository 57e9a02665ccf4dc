"""Hide known library warnings that require no action by users. All other warnings are shown."""

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
"""Patterns that match the beginning of a warning. Composer, torch and transformers issue these warnings because of
deliberate choices in this code base. `past_key_values` is used because earlier versions of transformers require it."""


def silence_expected_warnings() -> None:
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message=message)


def silence_transformers() -> None:
    """Disable the progress bar for loading weights, and warnings about deprecated arguments."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
