"""Errors that are collected before they are reported."""

import pytest

from data.base.errors import ConfigError, ConfigErrors, DataError, Problems, TemplateError


def report(*errors: Exception) -> ConfigErrors:
    problems = Problems(KeyError)
    for error in errors:
        with problems.collect():
            raise error
    with pytest.raises(ConfigErrors) as caught:
        problems.raise_if_any()
    return caught.value


def test_a_single_error_stays_as_it_is() -> None:
    error, problems = TemplateError("no"), Problems()
    with problems.collect():
        raise error
    with pytest.raises(TemplateError) as caught:
        problems.raise_if_any()
    assert caught.value is error


def test_several_are_listed_in_their_order_with_their_keys() -> None:
    several = report(ConfigError("is 1", key="a"), DataError("b:\n  x\n  y"))
    assert str(several) == "2 problems\n  a is 1\n  b:\n    x\n    y"
    assert [error.key for error in several.errors] == ["a", None]


def test_lists_become_one_list() -> None:
    inner = ConfigErrors([ConfigError("is 1", key="a"), ConfigError("is 2", key="b")])
    assert [error.key for error in report(inner, ConfigError("is 3", key="c")).errors] == ["a", "b", "c"]


def test_consequences_of_a_problem_are_not_reported() -> None:
    assert str(report(ConfigError("a"), KeyError("b"), ConfigError("c"))) == "2 problems\n  a\n  c"
    with pytest.raises(AssertionError, match="a consequence without a problem"):
        report(KeyError("a"))


def test_without_errors_nothing_is_raised() -> None:
    problems = Problems()
    with problems.collect():
        pass
    assert not problems
    problems.raise_if_any()


def test_other_errors_are_not_collected() -> None:
    problems = Problems()
    with pytest.raises(ValueError, match="a bug"), problems.collect():
        raise ValueError("a bug")
    assert not problems
