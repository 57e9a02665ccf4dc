"""Everything that can be wrong with a run and follows from its config and the number of ranks, without its data."""

from data.base.errors import Problems
from data.config.sections import Unavailable
from train.config.load import LoadedConfig, resolve_pretrained
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
