"""Names of other frameworks are answered with the key of the same meaning."""

import re

import pytest

from data.config.suggest import known_paths
from tests.helpers.small_config import refusal
from train.config.reading.other_names import SUGGESTIONS
from train.config.schema import TrainConfig

KEYS = set(known_paths(TrainConfig))


def test_suggestions_begin_with_a_key():
    written = [re.match(r"use ([\w.]+)", hint) for hint in SUGGESTIONS.values() if hint.startswith("use")]
    assert {found[1] for found in written if found is not None} <= KEYS


def test_no_name_is_a_key_itself():
    assert not KEYS & SUGGESTIONS.keys()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "callbacks.optimizer_monitor={}",
            "optimizer_monitor is not a key: the gradient norm is always",
        ),
        ("micro_batch_size=4", "micro_batch_size is not a key: use device_train_microbatch_size, the rows"),
        ("max_steps=10", "max_steps is not a key: use max_duration, such as 1000ba"),
        ("optimizer.learning_rate=1", "optimizer.learning_rate is not a key: use optimizer.lr"),
        ("model.hidden_size=8", "model.hidden_size is not a key: use model.d_model"),
        (
            "tokenizer.model_name=gpt-4",
            "is not a key here; the right key is tokenizer.kwargs.model_name",
        ),
    ],
)
def test_names_of_other_frameworks_suggest_a_key(tmp_path, override, message):
    assert message in refusal(tmp_path, override)
