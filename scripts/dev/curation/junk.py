"""Generates pages without content, as they are found in crawled text, and pages with questions of an evaluation."""

import random
from collections.abc import Callable, Sequence

_MENU_TEXT = (
    "Home|Products|Downloads|Pricing|Contact|Log in|Register|Sitemap|Archive|Tags|Categories|Search|Previous|Next|"
    "Top|Help|Shop|Cart|Checkout|Press|Jobs|Partners|Newsletter|RSS|Forum|Gallery|Videos|Events|Imprint|Share|Print|"
    "Tweet|Like|Subscribe|Follow|Reply|Report|Login|Language|English|Deutsch|Español|Français"
)
_MENU = tuple(_MENU_TEXT.split("|"))
_LATIN_TEXT = (
    "dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore magna aliqua ut "
    "enim ad minim veniam quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo consequat duis aute "
    "irure dolor in reprehenderit in voluptate velit esse cillum dolore eu fugiat nulla pariatur excepteur sint "
    "occaecat cupidatat non proident sunt in culpa qui officia deserunt mollit anim id est laborum"
)
_LATIN = tuple(_LATIN_TEXT.split())
_COOKIES = (
    "We use cookies to improve your experience on {site}",
    "Read our cookie policy to learn which cookies {site} stores on your device",
    "Our privacy policy explains how {site} uses the data of its visitors",
    "Click accept to agree to the terms of use of {site}",
    "Please enable JavaScript in your browser to see all pages of {site}",
    "Necessary cookies are required for the basic functions of {site} and are always active",
    "Analytics cookies help {site} to count visits and to measure the use of pages",
    "Marketing cookies are used by partners of {site} to show advertisements",
    "You can withdraw your consent at any time in the settings of {site}",
    "The cookie policy of {site} was last updated in {month}",
)
_MONTHS = ("January", "March", "April", "June", "August", "October", "November")
_PHRASES = ("buy {} online", "cheap {} for sale", "best {} of the year", "{} with free shipping", "discount on {}")
_GOODS = ("shoes", "watches", "handbags", "sunglasses", "phones", "laptops", "tires", "mattresses", "perfume")


def navigation(rng: random.Random) -> str:
    """A list of menu entries, one per line."""
    return "\n".join(f"{rng.choice(_MENU)} | {rng.choice(_MENU)}" for _ in range(rng.randint(40, 120)))


def cookie_banner(rng: random.Random) -> str:
    """Sentences about cookies and policies, one per line."""
    site = f"{rng.choice(_GOODS)}-{rng.randrange(10**4)}.net"
    lines = rng.choices(_COOKIES, k=rng.randint(6, 14))
    return "\n".join(f"{line}.".format(site=site, month=rng.choice(_MONTHS)) for line in lines)


def lorem_ipsum(rng: random.Random) -> str:
    """Random Latin words in sentences."""
    sentences = [" ".join(rng.choices(_LATIN, k=rng.randint(6, 14))).capitalize() for _ in range(rng.randint(10, 30))]
    return "Lorem ipsum " + ". ".join(sentences) + "."


def repeated_lines(rng: random.Random) -> str:
    """Two or three sentences, many times."""
    sentences = [
        f"This is the page of the {rng.choice(_GOODS)} that we have sold since {rng.choice(_MONTHS)} for you and me."
        for _ in range(rng.randint(2, 3))
    ]
    return "\n".join(rng.choices(sentences, k=rng.randint(15, 40)))


def keywords(rng: random.Random) -> str:
    """The same few phrases of a shop, in one line."""
    goods = rng.sample(_GOODS, 2)
    return ", ".join(rng.choice(_PHRASES).format(rng.choice(goods)) for _ in range(rng.randint(60, 150)))


def numbers(rng: random.Random) -> str:
    """A table of numbers."""
    rows = [
        " | ".join(f"{rng.randrange(10**5) / 100}" for _ in range(rng.randint(4, 8)))
        for _ in range(rng.randint(20, 60))
    ]
    return "\n".join(rows)


JUNK: dict[str, Callable[[random.Random], str]] = {
    "navigation": navigation,
    "cookie_banner": cookie_banner,
    "lorem_ipsum": lorem_ipsum,
    "repeated_lines": repeated_lines,
    "keywords": keywords,
    "numbers": numbers,
}
"""The kinds of pages without content."""


def question_page(questions: Sequence[dict[str, str]], rng: random.Random) -> str:
    """A page with some of the questions and their answers, in random order."""
    chosen = rng.sample(questions, min(10, len(questions)))
    opening = rng.choice(("Questions from last week's quiz", "Notes for the exam", "Answers that users have posted"))
    texts = [f"{each['prompt'].strip()}\n{each['response']}" for each in chosen]
    return "\n\n".join([f"{opening}, part {rng.randrange(100)}, with all of the answers.", *texts])
