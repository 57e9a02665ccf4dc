"""Masking of personal data and secrets."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from data.config.sections import Defect, Rule
from data.curation.base.document import KEPT, Document, Judge, Verdict
from data.curation.base.report import Table
from data.curation.base.step import Context, DocumentStep
from data.curation.steps.kinds import scores_of, table_of
from data.curation.steps.personal_data import Span, find_emails, find_ip_addresses
from data.curation.steps.secret_values import find_secret_values
from data.secrets.formats import find_keys, find_private_keys

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def _some_kind(step: "MaskPii") -> Iterator[Defect]:
    if not step.placeholders():
        yield Defect("", "masks nothing, because all kinds are null: set a placeholder, or remove the step")


@dataclass(frozen=True, kw_only=True)
class MaskPii(DocumentStep):
    """Replaces personal data and secrets with placeholders. Each kind has its own placeholder; null: this kind is kept.

    The number of changes is the number of replacements. Names, phone numbers and addresses of streets are not
    recognized. A masked text is not changed again, unless a placeholder is itself recognized.
    """

    RULES: ClassVar[tuple[Rule, ...]] = (_some_kind,)
    SHOWS_ORIGINALS: ClassVar[bool] = False

    email: str | None = "<EMAIL>"
    """E-mail addresses. Addresses in the domains that RFC 2606 reserves for documentation, such as example.com, are
    kept."""
    ip_address: str | None = "<IP_ADDRESS>"
    """Public IPv4 and IPv6 addresses. Numbers that are probably versions are kept: after words such as `version`, with
    .0 at the end, or with single digits only, such as 1.2.3.4."""
    private_ip_addresses: bool = False
    """Also mask IP addresses of private networks."""
    private_key: str | None = "<PRIVATE_KEY>"
    """Private keys in PEM or OpenPGP format."""
    key: str | None = "<KEY>"
    """Keys and tokens with the format of their provider: AWS, GitHub, GitLab, Slack, Google, Stripe, OpenAI, Anthropic,
    Hugging Face, npm, PyPI, SendGrid, Telegram, and JSON Web Tokens."""
    secret: str | None = "<SECRET>"
    """Values that look random after names such as `password`, `api_key` or `token`, credentials of HTTP authorization,
    and passwords in URLs."""

    def placeholders(self) -> dict[str, str]:
        """The placeholder of each enabled kind. If two kinds recognize overlapping texts, the first kind is used."""
        kinds = {
            "private_key": self.private_key,
            "key": self.key,
            "secret": self.secret,
            "ip_address": self.ip_address,
            "email": self.email,
        }
        return {kind: text for kind, text in kinds.items() if text is not None}

    def judge(self) -> Judge:
        placeholders, finders = self.placeholders(), self._finders()

        def judge(document: Document) -> Verdict:
            text = document.text
            found = [
                _Found(start, end, rank)
                for rank, kind in enumerate(placeholders)
                for start, end in finders[kind](text)
                if text[start:end] != placeholders[kind]
            ]
            if not found:
                return KEPT
            kinds = list(placeholders)
            parts, counts, end = [], Counter[str](), 0
            for one in _merged(found):
                kind = kinds[one.rank]
                parts += [text[end : one.start], placeholders[kind]]
                counts[kind] += 1
                end = one.end
            new = "".join([*parts, text[end:]])
            scores = scores_of("mask_pii", {kind: counts[kind] for kind in kinds}, document)
            return Verdict(text=new, changes=counts.total(), scores=scores)

        return judge

    def tables(self, result: "DataFrame", context: Context) -> list[Table]:
        return [table_of(result, "mask_pii", self.placeholders(), "Masked data by kind")]

    def _finders(self) -> dict[str, Callable[[str], Iterable[Span]]]:
        return {
            "private_key": lambda text: (match.span() for match in find_private_keys(text)),
            "key": lambda text: (match.span() for _, match in find_keys(text)),
            "secret": find_secret_values,
            "ip_address": lambda text: find_ip_addresses(text, private=self.private_ip_addresses),
            "email": find_emails,
        }


class _Found(NamedTuple):
    start: int
    end: int
    rank: int
    """Position of the kind in the order of preference."""


def _merged(found: list[_Found]) -> list[_Found]:
    """The spans in the order of the text. Overlapping spans are merged to one span of the preferred kind."""
    merged: list[_Found] = []
    for one in sorted(found):
        if not merged or one.start >= merged[-1].end:
            merged.append(one)
        else:
            last = merged[-1]
            merged[-1] = _Found(last.start, max(last.end, one.end), min(last.rank, one.rank))
    return merged
