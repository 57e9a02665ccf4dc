"""Plants defects in texts, and records what was planted and where."""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.dev.curation.changes import (
    BANNER_LINES,
    PERSONAL_DATA,
    edited,
    jaccard,
    personal_data,
    with_banner,
    with_personal_data,
)
from scripts.dev.curation.junk import JUNK, question_page
from scripts.dev.curation.texts import Texts, words_of

SHARES = {
    "exact_duplicate": 0.2,
    "near_duplicate": 0.3,
    "similar": 0.05,
    "banner_lines": 0.05,
    "personal_data": 0.08,
    **dict.fromkeys(JUNK, 0.1),
    "leaked_document": 0.04,
    "leaked_questions": 0.2,
}
"""Number of planted documents of each kind, as a fraction of the documents of `library` and `packages`."""


@dataclass(frozen=True, eq=False)
class Planted:
    """A document of the raw text, with the defect that was planted in it."""

    source: str
    text: str
    kind: str = ""
    """The kind of defect; empty: none."""
    original: "Planted | None" = None
    """The document of which this is a copy."""
    details: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """The raw text and the evaluation sets."""

    raw: dict[str, list[Planted]]
    """Documents by source, in the order of the files."""
    evals: dict[str, list[dict[str, str]]]
    """Records by name of the file."""


def plant(texts: Texts, seed: int) -> Example:
    """Plant the defects of SHARES. The result depends only on the arguments.

    Changes (banner lines, personal data, leaked documents) are made in documents that have no copies. Copies and pages
    without content are added as the source `pages`.
    """
    rng = random.Random(seed)
    evals = _evaluations(texts, rng)
    licenses = [Planted("licenses", text) for text in texts.raw["licenses"]]
    clean = [Planted(source, text) for source in ("library", "packages") for text in texts.raw[source]]
    rng.shuffle(clean)
    counts = {kind: max(round(share * len(clean)), 1) for kind, share in SHARES.items()}
    n_changed = sum(counts[kind] for kind in ("banner_lines", "personal_data", "leaked_document"))
    changed = _changed(clean[:n_changed], counts, [each["text"] for each in evals["leaked-documents"]], rng)
    copied = clean[n_changed:]
    pages = [*_copies(copied, counts, rng), *_junk(counts, evals["leaked-questions"], rng)]
    raw: dict[str, list[Planted]] = {}
    for each in (*changed, *copied, *licenses, *pages):
        raw.setdefault(each.source, []).append(each)
    for documents in raw.values():
        rng.shuffle(documents)
    return Example(raw=raw, evals=evals)


def _evaluations(texts: Texts, rng: random.Random) -> dict[str, list[dict[str, str]]]:
    """Divide held-out documents and questions into those that are planted in the raw text and those that are not."""
    documents = [{"text": text} for text in texts.heldout]
    questions = list(texts.questions)
    rng.shuffle(documents)
    rng.shuffle(questions)
    n_documents, n_questions = -(-len(documents) // 3), -(-len(questions) // 10)
    return {
        "leaked-documents": documents[:n_documents],
        "unseen-documents": documents[n_documents:],
        "leaked-questions": questions[:n_questions],
        "unseen-questions": questions[n_questions:],
    }


def _changed(
    documents: Sequence[Planted], counts: Mapping[str, int], leaked: Sequence[str], rng: random.Random
) -> list[Planted]:
    """Plant the defects that are inside of real documents."""
    remaining, result = iter(documents), []
    for _, each in zip(range(counts["banner_lines"]), remaining, strict=False):
        details = {"values": list(BANNER_LINES)}
        result.append(replace(each, kind="banner_lines", text=with_banner(each.text), details=details))
    kinds = list(PERSONAL_DATA)
    for number, each in zip(range(counts["personal_data"]), remaining, strict=False):
        kind = kinds[number % len(kinds)]
        value = personal_data(kind, rng)
        text = with_personal_data(each.text, kind, value, rng)
        result.append(replace(each, kind=kind, text=text, details={"values": [value]}))
    for number, each in enumerate(remaining):
        passage, line = _passage(leaked[number % len(leaked)], rng), number % len(leaked) + 1
        paragraphs = each.text.split("\n\n")
        paragraphs.insert(rng.randint(0, len(paragraphs)), passage)
        details = {"evaluation": "leaked-documents", "evaluation_line": line}
        result.append(replace(each, kind="leaked_document", text="\n\n".join(paragraphs), details=details))
    return result


def _passage(text: str, rng: random.Random) -> str:
    """Half of a text's lines, from a random line on, with at least 40 words."""
    lines = text.split("\n")
    start = rng.randrange(len(lines) // 2 + 1)
    passage = "\n".join(lines[start : start + len(lines) // 2 + 1])
    return passage if len(words_of(passage)) >= 40 else text


def _copies(documents: Sequence[Planted], counts: Mapping[str, int], rng: random.Random) -> list[Planted]:
    """Copy documents to the source `pages`. Each document is copied at most once."""
    vocabulary = sorted({word for each in documents[:200] for word in words_of(each.text) if word.isalpha()})
    enough = [each for each in documents if len(words_of(each.text)) >= 100]
    chosen = iter(rng.sample(enough, min(len(enough), sum(counts[kind] for kind in COPIES))))
    result = []
    for kind, (low, high) in COPIES.items():
        for _, each in zip(range(counts[kind]), chosen, strict=False):
            text = edited(each.text, rng.uniform(low, high), vocabulary, rng) if low < 1 else each.text
            details = {"jaccard": round(jaccard(each.text, text), 4)}
            result.append(Planted("pages", text, kind, each, details))
    return result


COPIES = {"exact_duplicate": (1.0, 1.0), "near_duplicate": (0.85, 0.97), "similar": (0.3, 0.6)}
"""Kinds of copies, with the range of their similarity to the original."""


def _junk(counts: Mapping[str, int], leaked: Sequence[dict[str, str]], rng: random.Random) -> list[Planted]:
    pages = [Planted("pages", make(rng), kind) for kind, make in JUNK.items() for _ in range(counts[kind])]
    for _ in range(counts["leaked_questions"]):
        pages.append(Planted("pages", question_page(leaked, rng), "leaked_questions"))
    return pages


def write(example: Example, folder: Path) -> dict[str, Any]:
    """Write raw/SOURCE.jsonl, evals/NAME.jsonl and planted.json. Returns the content of planted.json."""
    places: dict[Planted, dict[str, Any]] = {}
    for source, documents in example.raw.items():
        position = 0
        lines = [_line({"text": each.text}) for each in documents]
        for number, (each, line) in enumerate(zip(documents, lines, strict=True), start=1):
            places[each] = {"source": source, "line": number, "position": position}
            position += len(line)
        _write(folder / f"raw/{source}.jsonl", lines)
    for name, records in example.evals.items():
        _write(folder / f"evals/{name}.jsonl", [_line(record) for record in records])
    planted = []
    for each, place in places.items():
        if each.kind:
            of = {"of": places[each.original]} if each.original else {}
            planted.append({"kind": each.kind, **place, **of, **(each.details or {})})
    content = {"planted": dict(sorted(Counter(each["kind"] for each in planted).items())), "documents": planted}
    (folder / "planted.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def _line(record: Mapping[str, str]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _write(file: Path, lines: Sequence[bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(lines))
