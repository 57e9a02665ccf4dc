"""Language identification with a small fastText model."""

import random
import re

import pytest

from data.base.errors import ConfigError
from data.curation.quality.language import Language
from tests.curation.quality.texts import document
from tests.helpers.missing import skip_or_fail

WORDS = {
    "en": "the of and to in is that for it as was with be by on not he his but at are this have from",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    try:
        import fasttext
    except ImportError:
        skip_or_fail("fastText is not installed")
    folder, rng = tmp_path_factory.mktemp("model"), random.Random(0)
    lines = [f"__label__{name} {' '.join(rng.choices(WORDS[name].split(), k=9))}" for name in WORDS for _ in range(200)]
    (folder / "train.txt").write_text("\n".join(lines))
    options = {"dim": 8, "epoch": 20, "bucket": 2000, "minn": 1, "maxn": 3, "thread": 1, "verbose": 0}
    trained = fasttext.train_supervised(str(folder / "train.txt"), **options)
    trained.save_model(str(folder / "model.bin"))
    return str(folder / "model.bin")


def test_documents_in_other_languages_are_removed(model):
    step = Language(model=model, languages=["en"])
    step.check()
    judge = step.judge()
    english, german = judge(document("this is\nfor the cat")), judge(document("das ist nicht\nfür die Katze"))
    assert english.reason is None
    assert english.scores is not None
    assert english.scores["language.score"] == english.scores["language.en"] > 0.65
    assert german.reason == "language.min_score"
    assert re.search(r"; the most probable language is de \([01]\.\d\d\)$", str(german.detail))


def test_only_the_threshold_can_change_without_new_scores(model, tmp_path):
    step = Language(model=model, languages=["en"])
    assert Language(model=model, languages=["en"], min_score=None).scores_made_from() == step.scores_made_from()
    assert Language(model=model, languages=["de"]).scores_made_from() != step.scores_made_from()
    assert "model.bin" not in str(step.made_from())


def test_errors_of_the_config(model, tmp_path):
    (tmp_path / "bad.bin").write_bytes(b"not a model")
    for file, languages, message in (
        (str(tmp_path / "no.bin"), ["en"], "model is .*, but no such file exists"),
        (str(tmp_path / "bad.bin"), ["en"], "model is .*, but fastText cannot read this file"),
        (model, ["en", "den"], r"languages\[1\] is 'den', but the model has no such label; did you mean en"),
    ):
        with pytest.raises(ConfigError, match=message):
            Language(model=file, languages=languages).check()
    with pytest.raises(ConfigError, match="languages is empty"):
        Language(model=model, languages=[])
