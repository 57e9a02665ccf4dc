"""Types of single values in a config, with checks in addition to the Python type.

Checks that JSON schema can express are also added to the schema for editors.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from data.base.durations import DURATION_PATTERN, WALL_TIME_PATTERN, parse_duration, parse_wall_time
from data.base.paths import MAX_LABEL, label_defect, name_defect, path_defect, placeholder_defect
from data.base.sizes import parse_bytes

REFERENCE = r"\$\{|^\?\?\?$"
"""Pattern for a JSON schema: a reference such as `${max_seq_len}`, or the placeholder `???`."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """A number between bounds."""

    ge: float | None = None
    gt: float | None = None
    lt: float | None = None
    le: float | None = None

    def defect(self, value: object) -> str | None:
        if not isinstance(value, int | float):
            return None
        below = (self.ge is not None and value < self.ge) or (self.gt is not None and value <= self.gt)
        above = (self.lt is not None and value >= self.lt) or (self.le is not None and value > self.le)
        return f"is {value}, but it must be {self.described()}" if below or above else None

    def described(self) -> str:
        """A description of the bounds."""
        upper = self.lt if self.le is None else self.le
        if upper is None:
            return f"at least {self.ge}" if self.gt is None else f"above {self.gt}"
        left = f"[{self.ge}" if self.gt is None else f"({self.gt}"
        return f"in {left}, {_short(upper)}{')' if self.le is None else ']'}"

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        names = {"ge": "minimum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum", "le": "maximum"}
        bounds = {name: getattr(self, key) for key, name in names.items() if getattr(self, key) is not None}
        return handler(core_schema) | bounds


def _short(number: float) -> str:
    return "2**32" if number == 2**32 else str(number)


@dataclass(frozen=True, kw_only=True)
class Duration:
    """A string such as 10ba, 500tok, 2ep or 0.1dur."""

    positive: bool = False

    def defect(self, value: object) -> str | None:
        if not isinstance(value, str):
            return None
        try:
            length, _ = parse_duration(value)
        except ValueError as error:
            return str(error)
        return f"is {value!r}, but it must be longer than 0" if self.positive and length == 0 else None

    def described(self) -> str:
        return "a number and its unit: ba, tok, ep or dur"

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return handler(core_schema) | {"pattern": rf"^\s*{DURATION_PATTERN}\s*$|{REFERENCE}"}


@dataclass(frozen=True)
class _WallTime:
    """A string such as 3h50m."""

    def defect(self, value: object) -> str | None:
        if not isinstance(value, str):
            return None
        try:
            parse_wall_time(value)
        except ValueError as error:
            return str(error)
        return None

    def described(self) -> str:
        return "a time in days, hours, minutes or seconds, or a combination of these, such as 3h50m"

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return handler(core_schema) | {"pattern": rf"^\s*{WALL_TIME_PATTERN}\s*$|{REFERENCE}"}


@dataclass(frozen=True, kw_only=True)
class Form:
    """A string that matches a pattern."""

    pattern: str
    name: str
    """A description of the pattern."""

    def defect(self, value: object) -> str | None:
        valid = not isinstance(value, str) or re.fullmatch(self.pattern, value) is not None
        return None if valid else f"is {value!r}, but it must be {self.name}"

    def described(self) -> str:
        return self.name

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return handler(core_schema) | {"pattern": f"^({self.pattern})$|{REFERENCE}"}


@dataclass(frozen=True)
class _Path:
    """One or several valid paths. Whether they exist is checked elsewhere."""

    def defect(self, value: object) -> str | None:
        return path_defect(value)

    def described(self) -> str:
        return ""


@dataclass(frozen=True)
class _Name:
    """The name of a folder inside another folder."""

    def defect(self, value: object) -> str | None:
        return name_defect(value)

    def described(self) -> str:
        return "a name without slashes or braces"


@dataclass(frozen=True)
class _Label:
    """A label that is displayed by an experiment-tracking service, such as W&B."""

    def defect(self, value: object) -> str | None:
        return label_defect(value)

    def described(self) -> str:
        return f"at most {MAX_LABEL} characters"


@dataclass(frozen=True)
class _Placeholders:
    """A string in which the placeholders `{name}`, for each name in `names`, are replaced."""

    names: tuple[str, ...] = ()

    def defect(self, value: object) -> str | None:
        return placeholder_defect(value, *self.names)

    def described(self) -> str:
        return ""


@dataclass(frozen=True)
class _Bytes:
    """A size in bytes: a number, or a string such as 100gb."""

    def defect(self, value: object) -> str | None:
        if not isinstance(value, int | str):
            return None
        try:
            parse_bytes(value)
        except ValueError as error:
            return str(error)
        return None

    def described(self) -> str:
        return "a number of bytes, or a size such as 100gb"

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        form = r"^\s*\d+(\.\d+)?\s*([kmgtKMGT]?[iI]?[bB])?\s*$"
        return handler(core_schema) | {"minimum": 1, "pattern": f"{form}|{REFERENCE}"}


@dataclass(frozen=True)
class _CountOrAll:
    """A positive count, or -1, which means all."""

    def defect(self, value: object) -> str | None:
        valid = not isinstance(value, int) or value == -1 or value >= 1
        return None if valid else f"is {value}, but it must be {self.described()}"

    def described(self) -> str:
        return "-1 (all) or at least 1"

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return handler(core_schema) | {"minimum": -1, "not": {"const": 0}}


Count = Annotated[int, Range(ge=1)]
CountOrZero = Annotated[int, Range(ge=0)]
CountOrAll = Annotated[int, _CountOrAll()]
Seed = Annotated[int, Range(ge=0, lt=2**32)]
Positive = Annotated[float, Range(gt=0)]
NotNegative = Annotated[float, Range(ge=0)]
Share = Annotated[float, Range(ge=0, le=1)]
PositiveShare = Annotated[float, Range(gt=0, le=1)]
DropProbability = Annotated[float, Range(ge=0, lt=1)]
DurationText = Annotated[str, Duration()]
PositiveDuration = Annotated[str, Duration(positive=True)]
WallTime = Annotated[str, _WallTime()]
PathText = Annotated[str, _Path()]
PathOfRun = Annotated[str, _Path(), _Placeholders(("run_name",))]
PathOfRank = Annotated[str, _Path(), _Placeholders(("run_name", "rank"))]
Name = Annotated[str, _Name()]
Label = Annotated[str, _Label()]
Labels = Annotated[list[str], _Label()]
Size = Annotated[int | str, _Bytes()]
