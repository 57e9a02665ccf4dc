"""Reports of a synthetic curation, for tests of the page and of the console."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from data.curation.base.report import Counts, CurationReport, Flow, Histogram, Sample, StepReport, Table

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
_SCORED = 20_000
"""Maximum number of documents in a histogram."""
LONG_WORD = "https://example.org/" + "a1b2c3d4" * 60
ARABIC = "في هذا النص كلمات عربية، مع اسم English وعدد 123 في نفس السطر، من أجل اختبار الاتجاه."
SIZES = {"web": 812_400, "docs": 64_210, "code": 143_907}
"""Documents of each source."""
_TOKENS = {"web": 640, "docs": 1_830, "code": 910}
"""Mean number of tokens of the documents of each source."""
_BREAD = (
    "Bread needs flour, water, salt and time. Mix the flour with the water, wait for half an hour, and then add the "
    "salt. The long rest makes kneading easier, because the flour has absorbed the water.\n\nBake the loaf in a closed "
    "pot for 25 minutes, and then for 20 minutes without the lid."
)
_ROUTER = (
    "The router of a mixture-of-experts layer computes one score per expert for each token. The k experts with the "
    "highest scores process the token, and their outputs are added with the normalized scores as weights."
)
_HARBOUR = (
    "The harbour was built in 1884 and extended twice. Today it is used by small ferries, and by a school that teaches "
    "children to sail."
)
_CODE = "def mean(values):\n    if not values:\n        raise ValueError\n    return sum(values) / len(values)\n"
_TEXTS = (_BREAD, _ROUTER, _HARBOUR, _CODE, ARABIC)
_BAD = (
    "Home | About | Contact | Login | Register | Sitemap | Privacy | Terms",
    "buy now!!! best price!!! buy now!!! best price!!! buy now!!! best price!!! free shipping!!!",
    "### ### ### ### ... ... ... ### ### ###",
    f"click here: {LONG_WORD}",
    HOSTILE,
)


class Score(NamedTuple):
    """A score, its thresholds, and the edges, the center and the width of its histogram."""

    name: str
    key: str
    min: float | None
    max: float | None
    first: float
    last: float
    center: float
    width: float


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A step, with the share of the documents that it removes from each source."""

    name: str
    removed: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, float] = field(default_factory=dict)
    """Share of each reason among the removed documents."""
    changed: float = 0.0
    seconds: float = 20.0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    scores: Sequence[Score] = ()
    samples: Sequence[Sample] = ()
    changes: Sequence[Sample] = ()
    tables: Sequence[Table] = ()
    note: str = ""


def example_report(sizes: Mapping[str, int] = SIZES, *, n_steps: int | None = None) -> CurationReport:
    """A report with the given number of documents in each source. With `n_steps`, the same steps are repeated until
    there are this number of steps after `read`."""
    removals = [REMOVALS[n % len(REMOVALS)] for n in range(n_steps or len(REMOVALS))]
    flows = {name: _counts(n, _TOKENS.get(name, 700)) for name, n in sizes.items()}
    steps = [_read(flows)]
    for number, removal in enumerate(removals, start=1):
        steps.append(_step(number, removal, flows))
        flows = {name: flow.after for name, flow in steps[-1].flows.items()}
    return CurationReport(
        name="web and code",
        config={
            "name": "web and code",
            "seed": 17,
            "sources": {name: {"hf_name": f"raw/{name}.jsonl.gz"} for name in sizes},
            "steps": [{each.name: dict(each.parameters)} if each.parameters else each.name for each in removals],
            "output": "build/curated",
        },
        steps=steps,
        output="build/curated",
        versions={"dropless": "1.0.0", "pyspark": "4.1.0", "datatrove": "0.6.0"},
    )


def _counts(documents: int, tokens: int) -> Counts:
    return Counts(documents=documents, tokens=documents * tokens, bytes=documents * tokens * 4)


def _read(flows: Mapping[str, Counts]) -> StepReport:
    kept = [_sample(n, text) for n, text in enumerate(_TEXTS)]
    return StepReport(
        number=0,
        name="read",
        parameters={},
        fingerprint="0f1e2d3c4b5a",
        flows={name: Flow(before=counts, after=counts) for name, counts in flows.items()},
        kept=kept,
        seconds=94.2,
        bytes_on_disk=sum(counts.bytes for counts in flows.values()) * 2 // 5,
    )


def _step(number: int, removal: Removal, before: Mapping[str, Counts]) -> StepReport:
    flows = {name: _flow(counts, removal, name) for name, counts in before.items()}
    n_removed = sum(flow.before.documents - flow.after.documents for flow in flows.values())
    n_kept = sum(flow.after.documents for flow in flows.values())
    return StepReport(
        number=number,
        name=removal.name,
        parameters=dict(removal.parameters),
        fingerprint=f"{random.Random(number).getrandbits(48):012x}",
        flows=flows,
        reasons=_reasons(n_removed, removal.reasons),
        removed=[*removal.samples],
        kept=[_sample(number * 10 + n, text) for n, text in enumerate(_TEXTS)],
        changed=[*removal.changes],
        histograms=[_histogram(score, n_kept, n_removed) for score in removal.scores],
        tables=[*removal.tables],
        seconds=removal.seconds,
        bytes_on_disk=sum(flow.before.bytes for flow in flows.values()) * 2 // 5,
        note=removal.note,
    )


def _flow(before: Counts, removal: Removal, source: str) -> Flow:
    left = before.documents - round(before.documents * removal.removed.get(source, 0.0))
    per_document = before.tokens // max(before.documents, 1)
    return Flow(before=before, after=_counts(left, per_document), changed=round(left * removal.changed))


def _reasons(total: int, shares: Mapping[str, float]) -> dict[str, Counts]:
    """The total in the given shares. The first reason has the remainder."""
    counts = {reason: int(total * share) for reason, share in shares.items()}
    if counts:
        first = next(iter(counts))
        counts[first] += total - sum(counts.values())
    return {reason: _counts(n, 310) for reason, n in counts.items() if n}


def _histogram(score: Score, kept: int, removed: int) -> Histogram:
    """A bell curve. Documents outside of the thresholds are removed; the other removals have other reasons."""
    n_bins, n_documents = 40, min(kept + removed, _SCORED)
    low, high = score.min, score.max
    edges = [score.first + (score.last - score.first) * n / n_bins for n in range(n_bins + 1)]
    weights = [math.exp(-(((n + 0.5) / n_bins - score.center) ** 2) / score.width) for n in range(n_bins)]
    counts = [round(n_documents * weight / sum(weights)) for weight in weights]
    is_out = [(low is not None and edges[n] < low) or (high is not None and edges[n] >= high) for n in range(n_bins)]
    n_out = sum(count for count, out in zip(counts, is_out, strict=True) if out)
    other = max(n_documents * removed / (kept + removed) - n_out, 0) / (n_documents - n_out)
    gone = [count if out else round(count * other) for count, out in zip(counts, is_out, strict=True)]
    left = [count - n for count, n in zip(counts, gone, strict=True)]
    return Histogram(
        score=score.name,
        edges=edges,
        kept=left,
        removed=gone,
        n_documents=sum(counts),
        key=score.key,
        min=low,
        max=high,
    )


def _sample(n: int, text: str, reason: str | None = None, detail: str | None = None) -> Sample:
    return Sample(place=f"web: raw/web.jsonl.gz:{1_000 + 37 * n}", text=text, reason=reason, detail=detail)


def _duplicate(n: int, text: str, other: str, reason: str, detail: str) -> Sample:
    return Sample(
        place=f"web: raw/web.jsonl.gz:{90_000 + n}",
        text=text,
        reason=reason,
        detail=detail,
        other_place=f"docs: raw/docs.jsonl.gz:{n}",
        other_text=other,
    )


def _change(n: int, before: str, after: str) -> Sample:
    return Sample(place=f"web: raw/web.jsonl.gz:{5_000 + n}", text=after, other_text=before)


_WORDS = Score("gopher.doc_words", "min_doc_words", 50, None, 0, 600, 0.12, 0.03)
_LENGTH = Score("gopher.avg_word_length", "min_avg_word_length, max_avg_word_length", 3, 10, 0, 14, 0.43, 0.05)
_STOP = Score("gopher.stop_words", "min_stop_words", 2, None, 0, 40, 0.1, 0.03)
_LINES = Score("gopher.dup_line_frac", "dup_line_frac", None, 0.3, 0, 1, 0.08, 0.02)
REMOVALS = (
    Removal(
        name="normalize",
        changed=0.183,
        seconds=41.7,
        changes=[
            _change(
                1,
                "The  harbour was\u00a0built in 1884\r\nand extended twice.",
                "The harbour was built in 1884\nand extended twice.",
            ),
            _change(2, f"{ARABIC}\u200f\u200f  {ARABIC}", f"{ARABIC} {ARABIC}"),
        ],
    ),
    Removal(
        name="exact_duplicates",
        removed={"web": 0.118, "docs": 0.004, "code": 0.231},
        reasons={"exact_duplicate": 1.0},
        seconds=63.0,
        samples=[_duplicate(n, text, text, "exact_duplicate", "has the same text") for n, text in enumerate(_TEXTS)],
    ),
    Removal(
        name="gopher_quality",
        removed={"web": 0.574, "docs": 0.031, "code": 0.62},
        reasons={
            "gopher.min_stop_words": 0.44,
            "gopher.min_doc_words": 0.33,
            "gopher.max_avg_word_length": 0.12,
            "gopher.min_alpha_words_ratio": 0.08,
            "gopher.max_ellipsis_lines_ratio": 0.03,
        },
        seconds=318.4,
        parameters={"min_doc_words": 50, "stop_words": ["the", "be", "to", "of"], "max_avg_word_length": 10},
        scores=[_WORDS, _LENGTH, _STOP],
        samples=[
            _sample(n, text, "gopher.min_doc_words", f"gopher.doc_words is {3 + n}, but at least 50 is required")
            for n, text in enumerate(_BAD)
        ],
    ),
    Removal(
        name="gopher_repetition",
        removed={"web": 0.041, "docs": 0.002, "code": 0.012},
        reasons={"gopher.dup_line_frac": 0.7, "gopher.top_2_gram": 0.3},
        seconds=402.9,
        scores=[_LINES],
        samples=[_sample(7, _BAD[1], "gopher.top_2_gram", "gopher.top_2_gram is 0.61, but at most 0.2 is allowed")],
        note="Only thresholds were applied again; the scores are from an earlier result.",
    ),
    Removal(
        name="near_duplicates",
        removed={"web": 0.214, "docs": 0.012, "code": 0.087},
        reasons={"near_duplicate": 1.0},
        seconds=911.3,
        parameters={"threshold": 0.8, "ngram": 5, "num_perm": 128},
        samples=[
            _duplicate(
                n,
                text,
                text.replace("half an hour", "an hour").replace("1884", "1886"),
                "near_duplicate",
                "has an estimated Jaccard similarity of 0.93, but at most 0.8 is allowed",
            )
            for n, text in enumerate(_TEXTS[:3])
        ],
    ),
    Removal(
        name="decontaminate",
        removed={"web": 0.0004, "docs": 0.0021},
        reasons={"contaminated.mmlu": 0.8, "contaminated.gsm8k": 0.2},
        seconds=77.7,
        parameters={"evals": {"mmlu": "evals/mmlu.jsonl", "gsm8k": "evals/gsm8k.jsonl"}, "ngram": 13},
        samples=[_sample(3, _HARBOUR, "contaminated.mmlu", "shares 3 13-grams with evals/mmlu.jsonl:118")],
        tables=[
            Table(
                title="Contamination by task",
                columns=["task", "examples", "found in the data", "share"],
                rows=[["mmlu", 14_042, 31, 0.0022], ["gsm8k", 1_319, 6, 0.0045]],
            )
        ],
    ),
    Removal(
        name="mask_pii",
        changed=0.027,
        seconds=52.2,
        changes=[
            _change(
                3,
                "Write to jane.doe@example.org or call 030 1234567, Monday to Friday.",
                "Write to <email> or call <phone>, Monday to Friday.",
            ),
            _change(4, f"server 203.0.113.7 sent {HOSTILE}", f"server <ip> sent {HOSTILE}"),
        ],
    ),
    Removal(
        name="sample",
        removed={"web": 0.5},
        reasons={"sample": 1.0},
        seconds=11.4,
        parameters={"fractions": {"web": 0.5}},
    ),
)
