"""Names of other frameworks lead to the key that has their meaning here, and to no other."""

import re

import pytest

from data.config.suggest import known_paths
from tests.helpers.small_config import refusal
from train.config.reading.other_names import SUGGESTIONS
from train.config.schema import TrainConfig

KEYS = set(known_paths(TrainConfig))


def test_what_is_suggested_are_keys():
    written = [re.match(r"write ([\w.]+)", say) for say in SUGGESTIONS.values() if say.startswith("write")]
    assert {found[1] for found in written if found is not None} <= KEYS


def test_no_name_is_a_key_itself():
    assert not KEYS & SUGGESTIONS.keys()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "callbacks.optimizer_monitor={}",
            "optimizer_monitor is not a key: the norm of the gradient is always",
        ),
        ("micro_batch_size=4", "micro_batch_size is not a key: write device_train_microbatch_size, the rows"),
        ("max_steps=10", "max_steps is not a key: write max_duration, such as 1000ba"),
        ("optimizer.learning_rate=1", "optimizer.learning_rate is not a key: write optimizer.lr"),
        ("model.hidden_size=8", "model.hidden_size is not a key: write model.d_model"),
        (
            "tokenizer.model_name=gpt-4",
            "is not a key here; it belongs at tokenizer.kwargs.model_name",
        ),
    ],
)
def test_a_name_of_another_framework(tmp_path, override, said):
    assert said in refusal(tmp_path, override)
