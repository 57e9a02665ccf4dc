"""One thing that was checked, and how checks are run: none of them ends the program, or keeps it waiting for ever."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from data.base.errors import ConfigError, DataError, reason
from data.base.redaction import redacted
from data.config.sections import Unavailable

Status = Literal["ok", "slow", "wrong", "not here"]
"""wrong: a run fails, or may lose something. not here: this machine has none, and needs none as far as is known."""
STATUSES: tuple[Status, ...] = ("ok", "slow", "wrong", "not here")


@dataclass(frozen=True, kw_only=True)
class Check:
    name: str
    status: Status
    found: str
    """Each `{}` in it stands for one of the numbers, if there are any."""
    numbers: tuple[float, ...] = ()
    """What differs a little from node to node, such as speeds."""
    fix: str = ""

    def shown(self, others: Sequence["Check"] = ()) -> str:
        """With the numbers, from the lowest to the highest of those of others that have found the same text."""
        if not self.numbers:
            return self.found
        columns = zip(*(each.numbers for each in (self, *others)), strict=True)
        first, *rest = self.found.split("{}")
        return first + "".join(f"{_span(column)}{text}" for column, text in zip(columns, rest, strict=True))


def _span(numbers: Sequence[float]) -> str:
    low, high = _short(min(numbers)), _short(max(numbers))
    return low if low == high else f"{low} to {high}"


def _short(number: float) -> str:
    """Three digits, without an exponent."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def of_error(name: str, error: Exception, fix: str) -> Check:
    """What is wrong as an error says it. fix: besides what an error of ours says at its end."""
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
    """What `checked` has yielded; and one check more that is wrong when it raises, or when it takes longer than
    `seconds`. Its thread is left behind then, in whatever call it is waiting."""
    found: list[Check] = []

    def work() -> None:
        try:
            found.extend(checked())
        except Unavailable:
            text = "depends on what could not be read of the config"
            found.append(Check(name=name, status="not here", found=text))
        except Exception as error:
            found.append(of_error(name, error, fix))

    thread = threading.Thread(target=work, name=f"doctor {name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        late = Check(name=name, status="wrong", found=f"no answer within {seconds:g} s", fix=fix)
        return [*found, late]
    return found


def is_stuck() -> bool:
    """Whether a thread was left behind, so that the interpreter may not be able to end."""
    return any(thread.name.startswith("doctor ") for thread in threading.enumerate())


def slow_if(is_slow: bool, check: Check) -> Check:
    """An ok check has no fix."""
    return replace(check, status="slow") if is_slow else replace(check, fix="")
