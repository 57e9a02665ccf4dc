"""Warnings of libraries that the user of a run can do nothing about, by name; all others are shown."""

import warnings

EXPECTED = (
    "FSDP2 Config/APIs are experimental",
    "The warmup duration is 0",
    "TypedStorage is deprecated",
    "torch.distributed is disabled, unavailable or uninitialized",
    "Specifying `eval_interval=.*` without an `eval_dataloader`",
    "Setting both `progress_bar` and `log_to_console` both to True",
)
"""Of Composer and torch, about what was chosen on purpose. Each is the beginning of a message, as a pattern."""


def silence_expected_warnings() -> None:
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message=message)
