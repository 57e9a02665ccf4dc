"""Writes the quickstart's data: train.jsonl, heldout.jsonl and vocab.tiktoken. Files written with the same seed are
identical.

There are five kinds of small tasks that require computation. For each question in heldout.jsonl, train.jsonl contains
no question with the same letters and digits in any order: `What is 27 plus 61?` also excludes `What is 61 plus 27?`.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import base64
import json
import random
from collections.abc import Callable, Sequence

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def reverse(rng: random.Random) -> tuple[str, str]:
    word = _word(rng)
    return f"Reverse: {word}\n", word[::-1]


def sort(rng: random.Random) -> tuple[str, str]:
    word = _word(rng)
    return f"Sort the letters: {word}\n", "".join(sorted(word))


def shift(rng: random.Random) -> tuple[str, str]:
    word = _word(rng)
    return f"Shift by one: {word}\n", "".join(LETTERS[(LETTERS.index(letter) + 1) % 26] for letter in word)


def largest(rng: random.Random) -> tuple[str, str]:
    numbers = rng.sample(range(10, 100), k=3)
    return f"Which is largest: {numbers[0]}, {numbers[1]} or {numbers[2]}?\n", str(max(numbers))


def add(rng: random.Random) -> tuple[str, str]:
    left, right = rng.randint(1, 99), rng.randint(1, 99)
    return f"What is {left} plus {right}?\n", str(left + right)


# The kinds of tasks, and the number of examples of each. Tasks that take longer to learn have more examples.
TASKS: dict[str, tuple[Callable[[random.Random], tuple[str, str]], int]] = {
    "reverse": (reverse, 4000),
    "sort": (sort, 5000),
    "shift": (shift, 4000),
    "largest": (largest, 5000),
    "add": (add, 6000),
}
HELDOUT_OF_EACH = 40

# The fixed words of the questions, with their space or newline, are single tokens: tiktoken looks up a whole piece of
# text before it merges bytes. No pair of letters is a token, so each letter in the questions is a single token.
PIECES = (
    *("Reverse", "Sort", " the", " letters", "Shift", " by", " one"),
    *("Which", " is", " largest", " or", "What", " plus", "?\n"),
)


def _word(rng: random.Random) -> str:
    word = "".join(rng.choices(LETTERS, k=rng.randint(3, 5)))
    return word if f" {word}" not in PIECES else _word(rng)


def make_examples(seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the training examples and the held-out examples {prompt, response, task}, both shuffled."""
    rng = random.Random(seed)
    train: list[dict[str, str]] = []
    heldout: list[dict[str, str]] = []
    for task, (ask, count) in TASKS.items():
        examples: dict[str, dict[str, str]] = {}
        kept_back: set[str] = set()
        while len(examples) < count + HELDOUT_OF_EACH:
            prompt, response = ask(rng)
            written = "".join(sorted(prompt))
            if prompt in examples or (len(examples) >= HELDOUT_OF_EACH and written in kept_back):
                continue
            if len(examples) < HELDOUT_OF_EACH:
                kept_back.add(written)
            examples[prompt] = {"prompt": prompt, "response": response, "task": task}
        heldout += list(examples.values())[:HELDOUT_OF_EACH]
        train += list(examples.values())[HELDOUT_OF_EACH:]
    rng.shuffle(train)
    rng.shuffle(heldout)
    return train, heldout


def vocabulary() -> list[bytes]:
    """Return the tokens ordered by rank: the single bytes, then the words of the questions."""
    return [bytes([byte]) for byte in range(256)] + [piece.encode() for piece in PIECES]


def write(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, examples in zip(("train", "heldout"), make_examples(seed), strict=True):
        lines = "".join(json.dumps(example) + "\n" for example in examples)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    ranks = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(vocabulary()))
    (folder / "vocab.tiktoken").write_text("".join(ranks), encoding="ascii", newline="\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "quickstart")
    parser.add_argument("--seed", type=int, default=17)
    args = parser.parse_args(argv)
    from data.base.errors import cannot_be

    try:
        write(args.out, args.seed)
    except OSError as error:
        print(cannot_be("written", f"--out is {str(args.out)!r}, but it", error), file=sys.stderr)
        return 2
    print(f"wrote train.jsonl, heldout.jsonl and vocab.tiktoken into {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
