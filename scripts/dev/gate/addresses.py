"""Finds 32-bit products of a row number and a row width in the Triton IR of a kernel.

A product of 2**31 or more overflows, and the kernel accesses a wrong address. A row number is a program id of the first
grid dimension, or a value loaded from a tensor of indices. The other grid dimensions have at most 65,535 blocks.
"""

import re

_ASSIGNED = re.compile(r"^\s*(?P<result>%[\w]+)(?::\d+)? = \"?(?P<operation>[\w.]+)\"?(?P<rest>.*)$")
_VALUE = re.compile(r"%\w+")
_PLACE = re.compile(r"\s*loc\(.*$")
_I32 = re.compile(r"(?<![\w])(?:tensor<[\dx]*xi32>|i32)$")
_MADE_OF_OTHERS = ("arith.", "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape")


def narrow_products(ttir: str) -> list[str]:
    """Return the 32-bit products that have a row number as a factor."""
    rows: set[str] = set()
    found = []
    for line in ttir.splitlines():
        match = _ASSIGNED.match(_PLACE.sub("", line))
        if match is None:
            continue
        result, operation, rest = match["result"], match["operation"], match["rest"]
        narrow = _I32.search(rest.rstrip(" {)")) is not None
        of_rows = any(value in rows for value in _VALUE.findall(rest))
        if operation == "arith.muli" and narrow and of_rows:
            found.append(" ".join(line.split(" loc(")[0].split()))
        if _is_row(operation, rest, narrow) or (of_rows and narrow and operation.startswith(_MADE_OF_OTHERS)):
            rows.add(result)
    return found


def _is_row(operation: str, rest: str, narrow: bool) -> bool:
    """Whether an operation returns a row number. Results of branches and loops count as row numbers, because the lines
    of their bodies have not been read yet."""
    if operation == "tt.get_program_id":
        return rest.split()[0] == "x"
    loaded = operation == "tt.load" and ("!tt.ptr<i32>" in rest)
    return loaded or (narrow and operation in ("scf.if", "scf.for", "scf.while"))
