"""Report how the config of a resumed run has changed. Nothing is reported if the run loads only the weights of a
checkpoint."""

from collections.abc import Iterator, Mapping

from train.config.schema import TrainConfig
from train.resume.explain import explain, refuse_other_rows
from train.weights.start import Start


def check_rows(start: Start | None, config: TrainConfig, fingerprints: Mapping[str, str]) -> None:
    """Raise ConfigError if the rows of a stream have changed since the checkpoint was written. The error lists the
    changed keys. fingerprints: the fingerprints of the current streams, by name."""
    if start is not None and start.data_state is not None:
        key = "autoresume" if start.resuming else "load_path"
        refuse_other_rows(start.path, config, start.data_state, fingerprints, key)


def change_lines(start: Start | None, config: TrainConfig) -> Iterator[str]:
    """Yield lines for the console that list the changes to the config since the checkpoint was written."""
    if start is not None and start.data_state is not None:
        yield from explain(start.path, config, start.data_state, resuming=start.resuming)
