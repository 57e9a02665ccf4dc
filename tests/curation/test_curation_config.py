"""Configs of curations are checked completely before anything is opened."""

from dataclasses import dataclass

import pytest

from data.base.errors import ConfigError
from data.config.values import Count
from data.curation import config as module
from data.curation.base.step import DocumentStep, Threshold
from data.curation.config import read_config

VALUES = {"sources": {"web": {"text": "raw"}}, "tokenizer": {"name": "folder"}, "output": "out"}


@dataclass(frozen=True, kw_only=True)
class Lengths(DocumentStep):
    min_length: Count = 1
    of: str | None = None

    def thresholds(self):
        return [Threshold("lengths.length", "min_length", min=self.min_length)]

    def check_names(self, sources, scores):
        if self.of is not None and self.of not in (*sources, *scores):
            raise ConfigError(f"is {self.of!r}", key="of")


@pytest.fixture(autouse=True)
def steps(monkeypatch):
    monkeypatch.setattr(module, "STEPS", {"lengths": Lengths})


def errors_of(**values) -> str:
    with pytest.raises(ConfigError) as raised:
        read_config({**VALUES, **values})
    return str(raised.value)


def test_steps_are_read_in_order_with_their_parameters():
    items = ["lengths", {"lengths": {"min_length": 3}}, {"lengths": None}, {"my.module:function": {"a": 1}}]
    _, steps = read_config({**VALUES, "steps": items})
    assert [each.key for each in steps] == [
        "steps[0]",
        "steps[1].lengths",
        "steps[2].lengths",
        "steps[3].my.module:function",
    ]
    assert [getattr(each.step, "min_length", None) for each in steps] == [1, 3, 1, None]


def test_an_unknown_step_is_named_with_the_nearest_name():
    text = errors_of(steps=[{"lenghts": {"min_length": 3}}])
    assert text.startswith("steps[0] is 'lenghts', which is not a step; did you mean lengths?")


def test_all_problems_are_reported_together():
    steps = [
        "nothing",
        {"lengths": {"min_lenght": 3}},
        {"lengths": {"min_length": 0}},
        {"lengths": {}, "min_length": 3},
    ]
    text = errors_of(steps=[*steps, {"lengths": 3}, 7], outptu="out")
    assert "steps[0] is 'nothing', which is not a step" in text
    assert "steps[1].lengths.min_lenght is not a key; did you mean min_length?" in text
    assert "steps[2].lengths.min_length is 0, but it must be at least 1" in text
    assert "steps[3] must have one key, the name of the step, but its keys are lengths, min_length: indent" in text
    assert "steps[4].lengths is 3, but it must be a mapping of parameters" in text
    assert "steps[5] is 7, but it must be the name of a step: lengths" in text
    assert "outptu is not a key; did you mean output?" in text


def test_names_of_sources_and_of_earlier_scores_are_known_to_steps():
    read_config({**VALUES, "steps": [{"lengths": {"of": "web"}}, {"lengths": {"of": "lengths.length"}}]})
    assert "steps[0].lengths.of is 'lengths.length'" in errors_of(steps=[{"lengths": {"of": "lengths.length"}}])


def test_sources_without_data_and_an_output_in_a_store_are_refused():
    text = errors_of(sources={"web": {}, "a\nb": {"text": "raw"}}, output="s3://bucket/out")
    assert "sources.web has no data: set one of hf_name, local, text" in text
    assert "sources has a name that" in text
    assert "output is 's3://bucket/out', but it must be a folder" in text
    assert "sources is empty" in errors_of(sources={})
