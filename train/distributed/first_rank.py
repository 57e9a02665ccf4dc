"""What one rank does for all, such as writing a file that they share."""

from collections.abc import Callable

from composer.utils import dist

from data.base.errors import ConfigError, DataError


def on_first_rank(write: Callable[[], None]) -> None:
    """Runs on global rank 0; its ConfigError, DataError or OSError is raised on every rank, an OSError as ConfigError.

    Every rank has to call it.
    """
    errors: list[ConfigError | DataError | None] = [None]
    if dist.get_global_rank() == 0:
        try:
            write()
        except (ConfigError, DataError) as error:
            errors = [error]
        except OSError as error:
            errors = [ConfigError(str(error))]
    dist.broadcast_object_list(errors, src=0)
    if errors[0] is not None:
        raise errors[0]
