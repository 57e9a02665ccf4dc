"""Changes documents: edits words for near duplicates, and inserts lines of boilerplate and personal data."""

import random
import re
import string

from scripts.dev.curation.texts import shingles, words_of

SHINGLE = 5
"""The similarity of two texts is the Jaccard index of their sets of 5 consecutive words."""

BANNER_LINES = (
    "Please read our cookie policy and accept all cookies before you continue.",
    "Please enable JavaScript in your browser to see the complete page.",
    "By using this site you agree to the terms of use and the privacy policy.",
)


def jaccard(one: str, other: str) -> float:
    a, b = shingles(words_of(one), SHINGLE), shingles(words_of(other), SHINGLE)
    return len(a & b) / len(a | b)


def edited(text: str, similarity: float, vocabulary: list[str], rng: random.Random) -> str:
    """Replace random words until the similarity to the original is at most `similarity`. Everything between the words
    is unchanged."""
    pieces = re.split(r"(\w+)", text)
    places = list(range(1, len(pieces), 2))
    rng.shuffle(places)
    for place in places:
        pieces[place] = rng.choice(vocabulary)
        changed = "".join(pieces)
        if jaccard(text, changed) <= similarity:
            return changed
    return "".join(pieces)


def with_banner(text: str) -> str:
    """Add lines of a web page's banner before and after the text."""
    first, *others = BANNER_LINES
    return "\n\n".join([first, text, "\n".join(others)])


def personal_data(kind: str, rng: random.Random) -> str:
    """Return a random value: an address, a key or a token. None of these belongs to anyone."""

    def letters(alphabet: str, length: int) -> str:
        return "".join(rng.choice(alphabet) for _ in range(length))

    if kind == "email":
        return f"{letters(string.ascii_lowercase, 7)}@{letters(string.ascii_lowercase, 9)}.org"
    if kind == "ipv4":
        return f"93.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"
    if kind == "aws_key":
        return "AKIA" + letters(string.ascii_uppercase + "234567", 16)
    if kind == "github_token":
        return "ghp_" + letters(string.ascii_letters + string.digits, 36)
    raise ValueError(f"{kind} is not one of {', '.join(PERSONAL_DATA)}")


PERSONAL_DATA = {
    "email": "Send questions about this page to {}.",
    "ipv4": "The request was sent from the address {} last week.",
    "aws_key": "The access key of the test account is {}.",
    "github_token": "The build uses the token {} to publish releases.",
}
"""The kinds of personal data and secrets, with a sentence for each."""


def with_personal_data(text: str, kind: str, value: str, rng: random.Random) -> str:
    """Insert a sentence with the value between two paragraphs, or at the end."""
    paragraphs = text.split("\n\n")
    paragraphs.insert(rng.randint(1, len(paragraphs)), PERSONAL_DATA[kind].format(value))
    return "\n\n".join(paragraphs)
