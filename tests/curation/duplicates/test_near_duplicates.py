"""The parameters of near_duplicates."""

import pytest

from data.base.errors import ConfigError, EngineError
from data.curation.duplicates.near import NearDuplicates


def test_too_few_buckets_are_refused_with_the_number_needed():
    with pytest.raises(ConfigError, match=r"num_buckets is 5, .* only 78% .* set num_buckets to at least 8"):
        NearDuplicates(num_buckets=5)
    NearDuplicates(num_buckets=8)


def test_the_parameters_of_fineweb_are_accepted():
    NearDuplicates(num_buckets=14, hashes_per_bucket=8)


def test_a_threshold_of_1_needs_a_single_bucket():
    NearDuplicates(threshold=1, num_buckets=1)


@pytest.mark.parametrize("parameters", [{"keep": "highest_score"}, {"score": "a.b"}])
def test_a_score_belongs_to_highest_score(parameters):
    with pytest.raises(ConfigError, match=r"^score is"):
        NearDuplicates(**parameters)


@pytest.mark.parametrize("threshold", [0.0, 1.01])
def test_thresholds_are_similarities(threshold):
    with pytest.raises(ConfigError, match="threshold is"):
        NearDuplicates(threshold=threshold)


def test_scipy_is_required(monkeypatch):
    NearDuplicates().check()
    monkeypatch.setattr("data.curation.duplicates.near.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="near_duplicates requires SciPy"):
        NearDuplicates().check()
