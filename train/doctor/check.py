"""The result of one check, and a function that runs a check with a time limit and catches its exceptions."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from data.base.errors import ConfigError, DataError, reason
from data.config.sections import Unavailable
from data.secrets.redaction import redacted

Status = Literal["ok", "slow", "wrong", "not here"]
"""wrong: a run would fail or could lose data. not here: this machine does not have the checked component, and probably
does not need it."""
STATUSES: tuple[Status, ...] = ("ok", "slow", "wrong", "not here")


@dataclass(frozen=True, kw_only=True)
class Check:
    name: str
    status: Status
    found: str
    """The result. Each `{}` is a placeholder for one of `numbers`."""
    numbers: tuple[float, ...] = ()
    """Values that differ slightly between nodes, such as speeds."""
    fix: str = ""

    def shown(self, others: Sequence["Check"] = ()) -> str:
        """Return the result with its numbers filled in. Each number is shown as a range over this check and `others`,
        which are results with the same text from other nodes."""
        if not self.numbers:
            return self.found
        columns = zip(*(each.numbers for each in (self, *others)), strict=True)
        first, *rest = self.found.split("{}")
        return first + "".join(f"{_span(column)}{text}" for column, text in zip(columns, rest, strict=True))


def _span(numbers: Sequence[float]) -> str:
    low, high = _short(min(numbers)), _short(max(numbers))
    return low if low == high else f"{low} to {high}"


def _short(number: float) -> str:
    """Format with three digits and without an exponent."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def failed_check(name: str, error: Exception, fix: str) -> Check:
    """Return a failed check for an error. fix: a suggested fix, because the error message may not contain one."""
    text = redacted(str(error))
    if isinstance(error, ConfigError | DataError):
        return Check(name=name, status="wrong", found=text, fix=fix)
    if isinstance(error, OSError) and error.errno is not None:
        place = f"{error.filename}: " if error.filename is not None else ""
        return Check(name=name, status="wrong", found=f"{place}{reason(error)}", fix=fix)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = f": {lines[0]}" if lines else ""
    return Check(name=name, status="wrong", found=f"{type(error).__name__}{first}", fix=fix)


def run_check(name: str, checked: Callable[[], Iterable[Check]], seconds: float, fix: str) -> list[Check]:
    """Return the checks that `checked` yields, and one failed check if `checked` raises an error or takes longer than
    `seconds`. After a timeout, the thread of the check continues to wait in the background."""
    found: list[Check] = []

    def work() -> None:
        try:
            found.extend(checked())
        except Unavailable:
            text = "depends on a part of the config that could not be read"
            found.append(Check(name=name, status="not here", found=text))
        except Exception as error:
            found.append(failed_check(name, error, fix))

    thread = threading.Thread(target=work, name=f"doctor {name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        late = Check(name=name, status="wrong", found=f"not finished within {seconds:g} s", fix=fix)
        return [*found, late]
    return found


def is_any_check_running() -> bool:
    """Whether a thread of a check is still waiting. Such a thread may prevent the interpreter from exiting."""
    return any(thread.name.startswith("doctor ") for thread in threading.enumerate())


def slow_if(is_slow: bool, check: Check) -> Check:
    """Set the status to slow if is_slow; otherwise remove the fix, which a passed check does not need."""
    return replace(check, status="slow") if is_slow else replace(check, fix="")
