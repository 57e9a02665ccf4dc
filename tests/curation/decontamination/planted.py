"""Evaluation sets and documents that contain their questions."""

import json
import random
from pathlib import Path

PARTS = ["bal", "cor", "dusome", "fi", "genal", "hex", "itu", "jozo", "kam", "lort", "mink"]


def sentence(rng: random.Random, n: int) -> str:
    """n words, of which the first is capitalized. Two sentences with 5 words or more are different with almost
    certainty."""
    return " ".join(rng.choice(PARTS) + rng.choice(PARTS) for _ in range(n)).capitalize()


def write_set(path: Path, rng: random.Random, lengths: list[int]) -> list[str]:
    """Write a JSONL file with one question of each number of words. Returns the questions."""
    questions = [f"{sentence(rng, length)}?" for length in lengths]
    rows = [{"id": n, "question": text, "choices": ["Yes", "No"], "answer": 0} for n, text in enumerate(questions)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return questions


def disguised(question: str, rng: random.Random) -> list[str]:
    """The question with other case, punctuation and whitespace."""
    words = question.rstrip("?").split()
    return [
        question,
        question.upper(),
        question.replace(" ", "\n"),
        " \t ".join(words),
        ", ".join(words) + "!",
        " ".join(f"“{word}”" for word in words),
        "".join(word + rng.choice([" ", "\r\n\r\n", " - ", "... ", "\u00a0"]) for word in words),
    ]


def contaminated(question: str, rng: random.Random) -> list[str]:
    """Documents that contain the question at the start, in the middle and at the end, or that are the question."""
    before, after = sentence(rng, 40) + ". ", " " + sentence(rng, 40) + "."
    forms = disguised(question, rng)
    return [form for text in forms for form in (text, text + after, before + text, before + text + after)]
