"""What a run that goes on from a checkpoint says of its changes; nothing where it takes the weights alone."""

from collections.abc import Iterator, Mapping

from train.config.schema import TrainConfig
from train.resume.explain import explain, refuse_other_rows
from train.weights.start import Start


def check_rows(start: Start | None, config: TrainConfig, fingerprints: Mapping[str, str]) -> None:
    """Raises ConfigError when the run would go on with streams of other rows; it names the keys that changed.

    fingerprints are those of the streams now, by name.
    """
    if start is not None and start.data_state is not None:
        key = "autoresume" if start.resuming else "load_path"
        refuse_other_rows(start.path, config, start.data_state, fingerprints, key)


def change_lines(start: Start | None, config: TrainConfig) -> Iterator[str]:
    """Lines for the console: what changed in the config since the checkpoint was written."""
    if start is not None and start.data_state is not None:
        yield from explain(start.path, config, start.data_state, resuming=start.resuming)
