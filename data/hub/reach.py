"""Can the Hugging Face hub be asked? Its own library takes up to a minute of retries to find out."""

import functools
import threading

from data.base.errors import reason

WAIT_SECONDS = 6.0
"""For the hub to answer. Looking up its name, which no timeout of the HTTP library covers, can alone take longer."""


def why_offline() -> str | None:
    """Why the hub cannot be asked, to stand in a sentence; None when it answers.

    Asked once a process, with one short request to the endpoint (HF_ENDPOINT, through the proxies of the environment).
    Who gets a reason should use what is in the hub's cache: `local_files_only=True`.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return _why_silent(constants.ENDPOINT)


@functools.cache
def _why_silent(endpoint: str) -> str | None:
    answers: list[str | None] = []
    # A daemon, for it may still be waiting for a name server when the program ends.
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
    """What the operating system said, below what the libraries made of it."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    message = reason(error) if isinstance(error, OSError) else str(error)
    return message or type(error).__name__
