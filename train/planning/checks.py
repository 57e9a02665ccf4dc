"""Everything that can be wrong with a run and follows from its config and the number of ranks, without its data."""

from collections.abc import Sequence

from data.base.errors import ConfigError, Problems
from data.config.sections import Unavailable
from train.config.load import LoadedConfig, load_config, resolve_pretrained
from train.config.ranks import check_kernel_sizes, check_run_name, check_world_size
from train.config.schema import TrainConfig
from train.optim.patterns import check_patterns


def config_problems() -> Problems:
    """For what check_config finds: what follows from a problem is not reported."""
    return Problems(Unavailable)


def check_config(loaded: LoadedConfig, ranks: int, problems: Problems) -> TrainConfig:
    """The config of the run, checked as far as it goes without the data. Where the pretrained model cannot be read, so
    cannot be what its config.json says, and checks that need it are left out."""
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
    """The config at `path` with its overrides, of which everything has been checked. Raises ConfigError with all that
    is wrong, as train.py does before it reads data."""
    loaded, problems = load_config(path, overrides), config_problems()
    config = check_config(loaded, ranks, problems)
    try:
        problems.raise_if_any()
    except ConfigError as error:
        raise loaded.placed(error) from None
    return config
