"""The two errors a user can cause. Both name the place, the value and the way out; neither is shown as a traceback."""


class ConfigError(ValueError):
    """What was written in a config or on a command line cannot be."""


class DataError(ValueError):
    """What was fed cannot be used."""
