"""The outcome of a change of each key of the schema."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from data.config.sections import hints_of, join
from data.config.suggest import is_section, options_of, plain
from data.mixing.resume import DataState
from data.mixing.segments import Piece, Segment
from tests.helpers.small_config import load
from tests.resume.test_differences import STREAMS
from train.config.schema import TrainConfig
from train.resume.explain import changes_between
from train.resume.outcomes import OUTCOMES, entry_of


def changeable(hint: Any, key: str = "") -> Iterator[str]:
    """Every key that a difference can name: all except lists of sections and sections that always exist."""
    for option in options_of(hint):
        if is_section(option):
            for name, below in hints_of(option).items():
                place = join(key, name)
                items = [get_args(each)[0] for each in options_of(below) if get_origin(each) is list]
                if any(map(is_section, items)):
                    yield f"{place}[0]"
                elif not is_section(plain(below)):
                    yield place
                yield from changeable(below, place)
        elif get_origin(option) is list:
            yield from changeable(get_args(option)[0], f"{key}[0]")
        elif get_origin(option) is dict:
            yield join(key, "NAME")
            yield from changeable(get_args(option)[1], join(key, "NAME"))


KEYS = list(dict.fromkeys(changeable(TrainConfig)))


def test_each_key_has_an_outcome() -> None:
    assert len(KEYS) > 200
    assert {entry_of(key) for key in KEYS} == OUTCOMES.keys()  # entry_of raises for a key without an entry


def test_a_key_without_an_outcome_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"model\.new_key: "):
        entry_of("model.new_key")


def outcomes(folder: Path, was: list[str], now: list[str], **known: Any) -> dict[str, str]:
    changes = changes_between(load(folder, *was, text=STREAMS), load(folder, *now, text=STREAMS), **known)
    return {change.key: str(change.outcome) for change in changes}


@pytest.mark.parametrize(
    ("common", "now", "outcome"),
    [
        ("seed=17", "seed=18", "refused: the order of rows depends on this key"),
        ("train_loader.dataset.shuffle=false", "seed=18", "ignored: the checkpoint contains the random state"),
        ("train_loader.dataset.shuffle_seed=3", "seed=18", "ignored: the checkpoint contains the random state"),
        ("seed=17", "train_loader.dataset.shuffle_seed=17", "applied: the order of rows already uses"),
        ("seed=17", "train_loader.dataset.shuffle_seed=18", "refused: the order of rows"),
        ("seed=17", "train_loader.dataset.shuffle=false", "refused: the order of rows"),
        ("seed=17", "model.initializer_range=0.3", "ignored: the weights come from the checkpoint"),
        ("lora={r: 2, alpha: 4, target_modules: [attn]}", "model.initializer_range=0.3", "refused: the initial values"),
        ("lora={r: 2, alpha: 4, target_modules: [attn]}", "lora.per_expert=true", "ignored: the adapters have "),
        ("lora={r: 2, alpha: 4, target_modules: [w1]}", "lora.per_expert=true", "refused: the checkpoint's tensors"),
        (
            "lora={r: 2, alpha: 4, target_modules: [w1]}",
            "lora.alpha=5",
            "refused: the weights were trained with the old value",
        ),
        ("lora={r: 2, alpha: 4, target_modules: [w1]}", "lora.dropout=0.5", "applied"),
        ("seed=17", "optimizer.momentum=0.5", "ignored: adamw does not use this key"),
        ("seed=17", "optimizer.name=decoupled_adamw", "applied"),
        ("seed=17", "optimizer.name=sgd", "refused: the checkpoint's state belongs to a different optimizer"),
        ("seed=17", "optimizer.freeze=['*.wte.*']", "applied"),
        ("seed=17", "scheduler.t_decay=0.2dur", "ignored: constant_with_warmup does not use this key"),
        ("scheduler.name=wsd_with_warmup", "scheduler.t_decay=0.2dur", "applied"),
        (
            "seed=17",
            "train_loader.dataset.streams.code.split=x",
            "refused: this change is allowed only if the rows are unchanged",
        ),
        ("seed=17", "global_train_batch_size=16", "refused: this key can change only at the end of a stage"),
    ],
)
def test_the_outcome_of_a_key_depends_on_the_config(tmp_path: Path, common: str, now: str, outcome: str) -> None:
    found = outcomes(tmp_path, [common], [common, now])
    assert list(found) == [now.partition("=")[0]]
    assert next(iter(found.values())).startswith(outcome)


def test_frozen_parameters_cannot_be_unfrozen(tmp_path: Path) -> None:
    (found,) = outcomes(tmp_path, ["optimizer.freeze=['*.wte.*']"], ["optimizer.freeze=[]"]).values()
    assert (
        found
        == "refused: the checkpoint has no optimizer state for parameters that were frozen (transformer.wte.weight)"
    )
    assert outcomes(tmp_path, ["optimizer.freeze=['*.wte.*']"], ["optimizer.freeze=['*.wte.weight']"]) == {
        "optimizer.freeze": "applied"
    }


def test_keys_of_the_data_are_applied_if_the_rows_are_unchanged(tmp_path: Path) -> None:
    now = ["train_loader.dataset.streams.code.split=x", "train_loader.dataset.streams.web.hf_name=csv"]
    assert outcomes(tmp_path, [], now, other_rows=frozenset({"web"})) == {
        "train_loader.dataset.streams.web.hf_name": "refused: the rows have changed",
        "train_loader.dataset.streams.code.split": "applied: the rows are unchanged",
    }


def test_a_stream_can_be_added_but_not_removed(tmp_path: Path) -> None:
    more = ["train_loader.dataset.streams.math={text: math.txt}"]
    assert outcomes(tmp_path, [], more) == {"train_loader.dataset.streams.math": "applied: from here on"}
    (found,) = outcomes(tmp_path, more, []).values()
    assert found.startswith("refused: the run has used rows of this stream")


IN_STAGE = "earlier batches of this stage are unchanged"
STAGE = "{{name: {}, duration: 5ba, proportions: {{web: 1}}}}"


def state(batch: int, ends: tuple[int | None, ...]) -> DataState:
    """The data state of a run with one row of one token per batch, in stages that end at these batches."""
    piece = Piece(stage=0, n_batches=None, start=(1.0,), end=(1.0,), tokens_per_row=(1.0,), lr_start=1.0, lr_end=1.0)
    stages = tuple({"name": f"stage {number}"} for number in range(len(ends)))
    segment = Segment(
        first_batch=0, first_row=0, global_batch_size=1, counts=(0,), stages=stages, ends=ends, pieces=(piece,)
    )
    return DataState(rows=batch, max_seq_len=1, seed=0, shuffle=True, streams={"": "x"}, segments=(segment,))


def test_a_completed_stage_cannot_change(tmp_path: Path) -> None:
    was = ["max_duration=20ba", f"train_loader.stages=[{', '.join(map(STAGE.format, 'abc'))}]"]
    keys = [f"train_loader.stages.{number}" for number in range(3)]
    now = [*was, *(f"{key}.{change}" for key in keys for change in (f"name=x{key[-1]}", "lr_scale=2"))]
    done, outcome = (
        ["refused: the stage is completed"] * 2,
        ["refused: the run is in this stage", "applied: from batch 7 on; " + IN_STAGE],
    )
    assert [*outcomes(tmp_path, was, now, state=state(7, (5, 10, 15))).values()] == [*done, *outcome, *["applied"] * 2]
    assert [*outcomes(tmp_path, was, now, state=state(10, (5, 10, 15))).values()] == [*done, *done, *["applied"] * 2]
    bigger = outcomes(tmp_path, was, [*was, "global_train_batch_size=16"], state=state(10, (5, 10, 15)))
    assert bigger == {"global_train_batch_size": "applied: a stage ends here"}


def test_the_current_stage_changes_from_the_current_batch_on(tmp_path: Path) -> None:
    def ramp(start: str, end: str) -> list[str]:
        stage = f"{{name: a, duration: 9ba, proportions: {{from: {start}, to: {end}}}, lr_scale: {{from: 1, to: 2}}}}"
        return ["max_duration=20ba", f"train_loader.stages=[{stage}]"]

    was, key = ramp("{web: 1}", "{code: 1}"), "train_loader.stages[0]"
    now = [*ramp("{web: 2}", "{code: 3}"), "train_loader.stages.0.lr_scale.from=0.5"]
    passed = "ignored: the run is in this ramp, which continues from its current value"
    assert outcomes(tmp_path, was, now, state=state(3, (9,))) == {
        f"{key}.proportions.from.web": passed,
        f"{key}.proportions.to.code": f"applied: from batch 3 on; {IN_STAGE}",
        f"{key}.lr_scale.from": passed,
    }


def test_keys_of_the_start_are_ignored_on_a_resume(tmp_path: Path) -> None:
    now = ["eval_first=true", "save_overwrite=true", "load_path=x", "load_weights_only=true"]
    assert {text.partition(":")[0] for text in outcomes(tmp_path, [], now).values()} == {"ignored"}
    assert set(outcomes(tmp_path, [], now, resuming=False).values()) == {"applied"}
