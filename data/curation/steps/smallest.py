"""The documents with the smallest hashes of each stratum, up to a limit, without sorting all documents.

The hashes of a stratum are counted in bins. The bin in which the limit is reached is found from the counts, and only
the documents in this bin are collected and sorted.
"""

import math
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

BIN_BITS = 14
"""The bin of a hash is its first bits. A bin of a stratum with 10**9 documents has about 60,000 documents."""


class Limit(NamedTuple):
    """How many documents of a stratum are kept. Exactly one field is set."""

    fraction: float | None = None
    documents: int | None = None
    tokens: int | None = None

    def amount(self, n_documents: int) -> int:
        """The limit as a number of documents or of tokens. Fractions are rounded to the nearest number of documents."""
        if self.fraction is not None:
            return math.floor(self.fraction * n_documents + 0.5)
        return self.documents if self.documents is not None else self.tokens or 0


class Last(NamedTuple):
    """The last document of a stratum that is kept, in the order of hashes and ids."""

    stratum: str
    hash: int
    id: int


NONE = (-(2**63), -1)
"""A hash and an id before those of all documents."""
ALL = (2**63 - 1, 2**63 - 1)
"""A hash and an id not before those of any document."""


def hash_of(seed: int) -> "Column":
    """Hash of the seed and the document's id: XXH64 of the id, whose seed is the XXH64 of the seed."""
    from pyspark.sql import functions as F

    return F.xxhash64(F.lit(seed).cast("long"), F.col("id"))


def last_documents(documents: "DataFrame", limit_of: Callable[[str], Limit | None]) -> list[Last]:
    """For each stratum with a limit, the last document that is kept: the first with which the limit is reached, or the
    last of all. `documents` has the columns stratum, hash, id and n_tokens."""
    from pyspark.sql import functions as F

    bin_of = F.shiftright("hash", 64 - BIN_BITS).alias("bin")  # keeps the sign, and therefore the order
    counted = documents.groupBy("stratum", bin_of).agg(
        F.count("*").alias("documents"), F.sum("n_tokens").alias("tokens")
    )
    bins: dict[str, list[tuple[int, int, int]]] = {}
    for row in counted.collect():
        bins.setdefault(row["stratum"], []).append((row["bin"], row["documents"], row["tokens"]))
    found: list[Last] = []
    open_bins: dict[str, tuple[int, int, bool]] = {}
    for stratum, rows in bins.items():
        limit = limit_of(stratum)
        if limit is None:
            continue
        amount = limit.amount(sum(documents for _, documents, _ in rows))
        by_tokens = limit.tokens is not None
        rows.sort()
        sizes = [tokens if by_tokens else documents for _, documents, tokens in rows]
        if amount <= 0:
            found.append(Last(stratum, *NONE))
        elif (index := _first_reaching(sizes, amount)) is None:
            found.append(Last(stratum, *ALL))
        else:
            open_bins[stratum] = (rows[index][0], amount - sum(sizes[:index]), by_tokens)
    return found + _in_bins(documents, open_bins)


def _in_bins(documents: "DataFrame", bins: dict[str, tuple[int, int, bool]]) -> list[Last]:
    """The last documents of strata for which the bin, and the amount that is missing before it, are known."""
    from pyspark.sql import functions as F

    if not bins:
        return []
    session = documents.sparkSession
    rows = [(stratum, bin) for stratum, (bin, _, _) in bins.items()]
    wanted = F.broadcast(session.createDataFrame(rows, "stratum string, bin long"))
    inside = documents.withColumn("bin", F.shiftright("hash", 64 - BIN_BITS)).join(wanted, ["stratum", "bin"])
    members: dict[str, list[tuple[int, int, int]]] = {stratum: [] for stratum in bins}
    for row in inside.select("stratum", "hash", "id", "n_tokens").collect():
        members[row["stratum"]].append((row["hash"], row["id"], row["n_tokens"]))
    found = []
    for stratum, (_, missing, by_tokens) in bins.items():
        ordered = sorted(members[stratum])
        index = _first_reaching([tokens if by_tokens else 1 for _, _, tokens in ordered], missing)
        assert index is not None, "the bins have been counted in the same documents"
        found.append(Last(stratum, *ordered[index][:2]))
    return found


def _first_reaching(sizes: Iterable[int], amount: int) -> int | None:
    """The index of the first size with which the sum of the sizes reaches the amount."""
    return next((index for index, total in enumerate(accumulate(sizes)) if total >= amount), None)
