"""What a resumed run reports about changes of its config. Nothing is reported if the run loads only the weights of a
checkpoint."""

from collections.abc import Iterator, Mapping

from train.config.schema import TrainConfig
from train.resume.explain import explain, refuse_other_rows
from train.weights.start import Start


def check_rows(start: Start | None, config: TrainConfig, fingerprints: Mapping[str, str]) -> None:
    """Raise ConfigError if the run would resume with streams whose rows have changed. The error names the keys that
    changed. fingerprints: fingerprints of the current streams, by name.
    """
    if start is not None and start.data_state is not None:
        key = "autoresume" if start.resuming else "load_path"
        refuse_other_rows(start.path, config, start.data_state, fingerprints, key)


def change_lines(start: Start | None, config: TrainConfig) -> Iterator[str]:
    """Lines for the console: changes of the config since the checkpoint was written."""
    if start is not None and start.data_state is not None:
        yield from explain(start.path, config, start.data_state, resuming=start.resuming)
