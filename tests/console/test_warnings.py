"""Which warnings of libraries are shown."""

import warnings

from train.console.warnings import EXPECTED, silence_expected_warnings


def test_expected_warnings_are_silenced_and_others_are_shown() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        silence_expected_warnings()
        for message in (*EXPECTED, "another"):
            warnings.warn(message.replace(".*", "1ba"), stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["another"]
