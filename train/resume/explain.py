"""Report how the config changed since a checkpoint was written: lines for the console, and one error for all changes
that are refused."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError
from data.config.sections import unchecked
from data.mixing.resume import read_state
from train.checkpoint.save_folder import saved_config, saved_values
from train.config.schema import TrainConfig
from train.hf.config_json import at
from train.models.shapes import WEIGHT_KEYS
from train.resume.differences import Difference, differences, shown
from train.resume.outcomes import Case, Outcome, outcome_of, streams_of

_WIDEST = 60
"""Maximum width of a column. Longer values shift the columns after them."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A changed key and its outcome."""

    case: Case
    outcome: Outcome

    @property
    def difference(self) -> Difference:
        return self.case.difference

    @property
    def key(self) -> str:
        return self.difference.key


def changes_between(was: TrainConfig, now: TrainConfig, **known: Any) -> list[Change]:
    """Return the changes from one config to the other, in the order of the schema. `known`: the values of the other
    fields of Case."""
    cases = [Case(difference=difference, was=was, now=now, **known) for difference in differences(was, now)]
    return [Change(case=case, outcome=outcome_of(case)) for case in cases]


def table(changes: Sequence[Change]) -> list[str]:
    """Return a line for each change: the key, the old and the new value, and the outcome."""
    rows = [(change.key, str(change.difference), str(change.outcome)) for change in changes]
    widths = [min(max((len(row[column]) for row in rows), default=0), _WIDEST) for column in (0, 1)]
    return [f"  {key:<{widths[0]}}  {values:<{widths[1]}}  {outcome}" for key, values, outcome in rows]


def explain(checkpoint: Path, config: TrainConfig, state: Mapping[str, Any], *, resuming: bool) -> Iterator[str]:
    """Yield the lines that list the changes on the console when a run resumes from the checkpoint. Must be called after
    `refuse_other_rows`.

    `state` is the data state in the checkpoint. For `resuming`, see Case.
    """
    try:
        was = saved_config(checkpoint)
    except ConfigError as error:
        yield f"changes since {checkpoint.name} cannot be listed: {_first_problem(error)}"
        return
    if was is None:
        missing = "there is no config.yaml in the checkpoint or next to it"
        yield f"changes since {checkpoint.name} cannot be listed: {missing}"
        return
    known = {"state": read_state(state), "resuming": resuming, "other_rows": frozenset[str]()}
    if changes := changes_between(was, config, **known):
        yield "\n".join([f"changed since {checkpoint.name}:", *table(changes)])


def refuse_changes(
    checkpoint: Path, config: TrainConfig, state: Mapping[str, Any] | None, key: str, *, whole_state: bool = True
) -> None:
    """Raise ConfigError with all keys whose change is refused, as far as this can be decided before the data is opened.

    key: the key through which the checkpoint was chosen, autoresume or load_path. whole_state: False if only the
    weights are loaded.
    """
    known = {"resuming": key == "autoresume", "state": None if state is None else read_state(state)}
    refused = [change for change in _changes(checkpoint, config, **known) if change.outcome.kind == "refused"]
    if not whole_state:
        refused = [change for change in refused if change.outcome.also_of_weights]
    if any(map(_is_certain, refused)):
        raise _refusal(checkpoint, key, refused)


def refuse_other_rows(
    checkpoint: Path, config: TrainConfig, state: Mapping[str, Any], fingerprints: Mapping[str, str], key: str
) -> None:
    """Raise ConfigError if the rows of a stream are not the rows that the run was trained on. The error lists the
    changed keys. fingerprints: the fingerprints of the current streams, by name. key: see refuse_changes.
    """
    saved = read_state(state)
    others = frozenset(name for name, then in saved.streams.items() if fingerprints.get(name) != then)
    if not others:
        return
    known = {"resuming": key == "autoresume", "state": saved, "other_rows": others}
    refused = [change for change in _changes(checkpoint, config, **known) if change.outcome.kind == "refused"]
    explained = {name for change in refused for name in streams_of(change.case)}
    if not refused or others - explained:
        unexplained = sorted(others - explained)
        labels = ", ".join(
            f"{f'stream {name}' if name else 'train_loader.dataset'} (fingerprint was {saved.streams[name]}, is now "
            f"{fingerprints.get(name)})"
            for name in unexplained
        )
        raise _refusal(checkpoint, key, refused, others=labels)
    raise _refusal(checkpoint, key, refused)


def _changes(checkpoint: Path, config: TrainConfig, **known: Any) -> list[Change]:
    """Return the changes to the config since the checkpoint was written. The list is empty if the checkpoint's config
    does not exist. If that config cannot be read, because another version of this code wrote it, only the keys that
    define the meaning of the weights are compared."""
    try:
        was = saved_config(checkpoint)
    except ConfigError:
        was = _with_weights_of(checkpoint, config)
    return [] if was is None else changes_between(was, config, **known)


def _with_weights_of(checkpoint: Path, config: TrainConfig) -> TrainConfig:
    """Return the config with the checkpoint's values for the keys that determine how the weights are
    interpreted."""
    values, now = saved_values(checkpoint), asdict(config.model)
    keys: dict[str, dict[str, Any]] = {"": {}, "attn_config": {}, "ffn_config": {}}
    for key in WEIGHT_KEYS:
        section, _, name = key.rpartition(".")
        keys[section][name] = at(values, f"model.{key}", at(now, key))
    with unchecked():
        attn = replace(config.model.attn_config, **keys["attn_config"])
        ffn = replace(config.model.ffn_config, **keys["ffn_config"])
        return replace(config, model=replace(config.model, attn_config=attn, ffn_config=ffn, **keys[""]))


def _is_certain(change: Change) -> bool:
    """Whether the change is refused even if all rows are unchanged."""
    same_rows = replace(change.case, other_rows=frozenset())
    return outcome_of(same_rows).kind == "refused"


def _refusal(checkpoint: Path, key: str, refused: Sequence[Change], others: str | None = None) -> ConfigError:
    path = str(checkpoint)
    lines = [f"{change.key} {change.difference} ({change.outcome.reason})" for change in refused]
    if others is not None:
        also = "further " if refused else ""
        lines.append(
            f"the rows of {others} are not the rows that the checkpoint was trained on, although no {also}key that "
            "determines these rows has changed: the content of a file, of the tokenizer or of preprocessing_fn has "
            "changed"
        )
    back = "restore the old value" if len(lines) == 1 else "restore the old values"
    if any(change.outcome.also_of_weights for change in refused):
        fix = f"{back}, or start a new run from the beginning with another run_name"
    else:
        fix = (
            f"{back}, or start a new run from the weights with another run_name, load_path={shown(path)} and "
            "load_weights_only=true"
        )
    subject = f"is {path!r}" if key == "load_path" else f"is true, and the newest checkpoint is {path!r}"
    if len(lines) == 1:
        return ConfigError(f"{subject}, but {lines[0]}: {fix}", key=key)
    return ConfigError("\n  ".join([f"{subject}, but some changes cannot be applied:", *lines, fix]), key=key)


def _first_problem(error: ConfigError) -> str:
    """Return the first problem of an error, on one line."""
    first, *others = str(error).splitlines()
    return f"{first}: {others[0].strip()}" + (" ..." if others[1:] else "") if others else first
