"""Check whether the Hugging Face hub can be reached. Its own library retries for up to a minute to find out."""

import functools
import threading

from data.base.errors import reason

WAIT_SECONDS = 6.0
"""Time limit for the hub to answer. Timeouts of the HTTP library do not cover the DNS lookup, which may take longer."""


def why_offline() -> str | None:
    """Why the hub cannot be reached, as a clause; None if it answers.

    Sends one short request per process to the endpoint (HF_ENDPOINT, through the proxies of the environment). If the
    hub cannot be reached, callers should use only the hub's cache: `local_files_only=True`.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return _why_silent(constants.ENDPOINT)


@functools.cache
def _why_silent(endpoint: str) -> str | None:
    answers: list[str | None] = []
    # A daemon thread, because it may still wait for DNS when the program ends.
    asking = threading.Thread(target=lambda: answers.append(_ask(endpoint)), daemon=True)
    asking.start()
    asking.join(WAIT_SECONDS)
    reason = answers[0] if answers else f"no answer within {WAIT_SECONDS:g} s"
    return None if reason is None else f"no network: {endpoint} cannot be reached ({reason})"


def _ask(endpoint: str) -> str | None:
    import requests

    try:
        requests.head(endpoint, timeout=WAIT_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        return _root_of(error)
    return None


def _root_of(error: BaseException) -> str:
    """The message of the operating system, which the libraries' errors were raised from."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    message = reason(error) if isinstance(error, OSError) else str(error)
    return message or type(error).__name__
