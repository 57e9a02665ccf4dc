"""All checks of a run that need only its config and the number of ranks, and not its data."""

from collections.abc import Sequence

from data.base.errors import ConfigError, Problems
from data.config.sections import Unavailable
from train.config.load import LoadedConfig, load_config, resolve_pretrained
from train.config.ranks import check_kernel_sizes, check_run_name, check_world_size
from train.config.schema import TrainConfig
from train.optim.patterns import check_patterns


def config_problems() -> Problems:
    """A collector of problems for check_config. It drops problems that are only consequences of other problems."""
    return Problems(Unavailable)


def check_config(loaded: LoadedConfig, ranks: int, problems: Problems) -> TrainConfig:
    """Check the run's config as far as possible without its data, and return it. If the pretrained model cannot be
    read, the checks that need its config.json are skipped."""
    config = loaded.config
    with problems.collect():
        config = resolve_pretrained(loaded)
    with problems.collect():
        check_run_name(config)
    with problems.collect():
        check_world_size(config, ranks)
    with problems.collect():
        check_kernel_sizes(config, ranks)
    with problems.collect():
        check_patterns(config)
    return config


def read_checked(path: str, overrides: Sequence[str], ranks: int) -> TrainConfig:
    """Read the config at `path` with its overrides, and run all checks on it. Raises the same ConfigError with all
    problems that train.py raises before it reads data."""
    loaded, problems = load_config(path, overrides), config_problems()
    config = check_config(loaded, ranks, problems)
    try:
        problems.raise_if_any()
    except ConfigError as error:
        raise loaded.placed(error) from None
    return config
