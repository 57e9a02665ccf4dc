"""A step of yamls/curation/stdlib.yaml, as an example of your own function."""

import re
from typing import Any

_BANNER = re.compile(r"\b(cookies?|privacy policy|terms of use|enable javascript)\b", re.IGNORECASE)


def without_banners(document: dict[str, Any], max_share: float) -> str | bool:
    """Remove lines about cookies and policies. Remove the document if more than this share of its lines are such
    lines.

    Unlike `c4_quality`, this function does not change the indentation of lines.
    """
    lines = document["text"].split("\n")
    kept = [line for line in lines if not _BANNER.search(line)]
    return "\n".join(kept) if len(lines) - len(kept) <= max_share * len(lines) else False
