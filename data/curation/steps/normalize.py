"""Normalization of Unicode and whitespace."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import regex

from data.base.errors import ConfigError
from data.base.versions import installed_versions
from data.config.values import CountOrZero
from data.curation.base.document import KEPT, Document, Judge, Verdict
from data.curation.base.report import Table
from data.curation.base.step import Context, DocumentStep
from data.curation.steps.kinds import scores_of, table_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_LINE_ENDS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
"""Line ends other than \\n. Source: The Unicode Standard, section 5.8, Newline Guidelines."""
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"  # control characters, without tabs and line ends
    "\xad\u200b\u2060\ufeff\ufff9-\ufffb"  # soft hyphen, zero-width space, word joiner, BOM, annotations
    "\ufdd0-\ufdef\ufffe\uffff]"  # noncharacters
)
"""The zero-width joiner and non-joiner and the direction marks are not included, because Persian, Hindi, Hebrew and
emoji need them."""
_SPACES = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and not re.match(r"[\n\r\v\f\x85\u2028\u2029]", c))
_MANY_MARKS = regex.compile(r"\p{M}{256}")
"""unicodedata sorts the combining marks of a character in quadratic time."""

Change = Callable[[str], tuple[str, int]]
"""Maps a text to the changed text and the number of changes."""


@dataclass(frozen=True, kw_only=True)
class Normalize(DocumentStep):
    """Normalizes Unicode, line ends and whitespace. The defaults are safe for code, because indentation is kept.

    The number of changes is the sum of: lines with repaired mojibake; replaced line ends; removed invisible characters;
    lines changed by the Unicode normalization form; lines with trailing whitespace; and removed blank lines. A document
    without any text after normalization is removed. Without `fix_mojibake`, a normalized text is not changed again.
    """

    unicode: Literal["NFC", "NFKC"] | None = "NFC"
    """Unicode normalization form. NFKC also replaces ligatures, full-width letters, superscripts and no-break spaces,
    which changes the meaning of formulas and code. Lines with 256 combining marks in succession are not changed."""
    fix_mojibake: bool = False
    """Repair text that was decoded with the wrong encoding, with ftfy: `cafÃ©` becomes `café`."""
    line_ends: bool = True
    """Replace the line ends \\r\\n and \\r, form feeds, vertical tabs, and Unicode's line and paragraph separators with
    \\n."""
    invisible: bool = True
    """Remove control characters other than tabs and line ends, byte order marks, zero-width spaces, word joiners, soft
    hyphens and noncharacters."""
    trailing_whitespace: bool = True
    """Remove whitespace at the end of lines."""
    max_blank_lines: CountOrZero | None = 2
    """Maximum number of blank lines in succession. All blank lines at the start and at the end are removed. null: keep
    blank lines."""

    def check(self) -> None:
        """Raises ConfigError if ftfy is required and is not installed."""
        if self.fix_mojibake and find_spec("ftfy") is None:
            raise ConfigError(
                "is true, but the package ftfy is not installed: pip install -e '.[curation]' on all executors, or "
                "set the value to false",
                key="fix_mojibake",
            )

    def made_from(self) -> dict[str, Any]:
        unicode = {"unicode_data": unicodedata.unidata_version} if self.unicode is not None else {}
        ftfy = {"ftfy": installed_versions(["ftfy"]).get("ftfy")} if self.fix_mojibake else {}
        return asdict(self) | unicode | ftfy

    def judge(self) -> Judge:
        changes = self._changes()

        def judge(document: Document) -> Verdict:
            text, counts = document.text, {}
            for kind, change in changes.items():
                text, counts[kind] = change(text)
            if not text or text.isspace():
                return Verdict(reason="normalize.empty", detail="has no text after normalization")
            if text == document.text:
                return KEPT
            scores = scores_of("normalize", counts, document)
            return Verdict(text=text, changes=sum(counts.values()), scores=scores)

        return judge

    def tables(self, result: "DataFrame", context: Context) -> list[Table]:
        return [table_of(result, "normalize", self._changes(), "Changes by normalize")]

    def _changes(self) -> dict[str, Change]:
        """The enabled changes by kind, in the order in which a text that they have changed is not changed again: the
        Unicode form depends on adjacent characters, and creates spaces."""
        changes: dict[str, Change | None] = {
            "mojibake": _mojibake if self.fix_mojibake else None,
            "line_ends": (lambda text: _LINE_ENDS.subn("\n", text)) if self.line_ends else None,
            "invisible": (lambda text: _INVISIBLE.subn("", text)) if self.invisible else None,
            "unicode": partial(_unicode, self.unicode) if self.unicode is not None else None,
            "trailing_whitespace": _trailing if self.trailing_whitespace else None,
            "blank_lines": partial(_blank_lines, self.max_blank_lines) if self.max_blank_lines is not None else None,
        }
        return {kind: change for kind, change in changes.items() if change is not None}


def _mojibake(text: str) -> tuple[str, int]:
    import ftfy

    # By line, because a document may have parts with different encodings.
    old = text.split("\n")
    new = [line if line.isascii() else ftfy.fix_encoding(line) for line in old]
    return "\n".join(new), _different(old, new)


def _unicode(form: Literal["NFC", "NFKC"], text: str) -> tuple[str, int]:
    if text.isascii():
        return text, 0
    old = text.split("\n")
    new = [line if _MANY_MARKS.search(line) else unicodedata.normalize(form, line) for line in old]
    return "\n".join(new), _different(old, new)


def _trailing(text: str) -> tuple[str, int]:
    old = text.split("\n")
    new = [line.rstrip(_SPACES) for line in old]
    return "\n".join(new), _different(old, new)


def _blank_lines(most: int, text: str) -> tuple[str, int]:
    new = re.sub(f"\n{{{most + 2},}}", "\n" * (most + 1), text).strip("\n")
    new += "\n" if text.endswith("\n") and new else ""
    return new, len(text) - len(new)


def _different(old: list[str], new: list[str]) -> int:
    return sum(a != b for a, b in zip(old, new, strict=True))
