"""Whether a kernel multiplies the number of a row by its width in 32 bits, read off Triton's intermediate code.

From 2**31 on such a product is negative, and the address that it is part of is another's. Numbers of rows are what a
kernel has from its first grid dimension, or loads from a tensor of indices. Other dimensions of a grid have at most
65,535 blocks.
"""

import re

_ASSIGNED = re.compile(r"^\s*(?P<result>%[\w]+)(?::\d+)? = \"?(?P<operation>[\w.]+)\"?(?P<rest>.*)$")
_VALUE = re.compile(r"%\w+")
_PLACE = re.compile(r"\s*loc\(.*$")
_I32 = re.compile(r"(?<![\w])(?:tensor<[\dx]*xi32>|i32)$")
_MADE_OF_OTHERS = ("arith.", "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape")


def narrow_products(ttir: str) -> list[str]:
    """The 32-bit products that a number of a row is a factor of."""
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
    """Also of what a branch or a loop gives, whose parts are further down."""
    if operation == "tt.get_program_id":
        return rest.split()[0] == "x"
    loaded = operation == "tt.load" and ("!tt.ptr<i32>" in rest)
    return loaded or (narrow and operation in ("scf.if", "scf.for", "scf.while"))
