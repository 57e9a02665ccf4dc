"""Check whether the Hugging Face hub can be reached. If the hub cannot be reached, huggingface_hub would retry for up
to a minute before it raises an error."""

import functools
import threading

from data.base.errors import reason

WAIT_SECONDS = 6.0
"""Maximum number of seconds to wait for a response from the hub. Timeouts of the HTTP library do not include the DNS
lookup, which may take longer."""


def why_offline() -> str | None:
    """The reason why the hub cannot be reached, as a clause for messages; None if the hub can be reached.

    Each process sends one short request to the endpoint (HF_ENDPOINT, through the proxies set in the environment). If
    the hub cannot be reached, callers should use only the hub's cache: `local_files_only=True`.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return _why_silent(constants.ENDPOINT)


@functools.cache
def _why_silent(endpoint: str) -> str | None:
    answers: list[str | None] = []
    # The thread is a daemon thread, because it may still wait for DNS when the program ends.
    asking = threading.Thread(target=lambda: answers.append(_ask(endpoint)), daemon=True)
    asking.start()
    asking.join(WAIT_SECONDS)
    reason = answers[0] if answers else f"no response within {WAIT_SECONDS:g} s"
    return None if reason is None else f"no network: {endpoint} cannot be reached ({reason})"


def _ask(endpoint: str) -> str | None:
    import requests

    try:
        requests.head(endpoint, timeout=WAIT_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        return _root_of(error)
    return None


def _root_of(error: BaseException) -> str:
    """The operating system's message for the error that caused the library's error."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    message = reason(error) if isinstance(error, OSError) else str(error)
    return message or type(error).__name__
