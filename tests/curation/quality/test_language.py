"""Languages are identified with a real fastText model, which the tests train on a few words."""

import json
import pickle
import shutil
import sys

import pytest

from data.base.errors import ConfigError
from data.curation.quality.language import Language
from tests.curation.quality.texts import document
from tests.helpers.missing import skip_or_fail

WORDS = {"en": "the bridge is old and the garden is large", "de": "die Brücke ist alt und der Garten ist groß"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    try:
        import fasttext
    except ImportError:
        skip_or_fail("fastText is not installed")
    folder = tmp_path_factory.mktemp("language")
    lines = [f"__label__{name} {text}\n" for name, text in WORDS.items()] * 40
    (folder / "train.txt").write_text("".join(lines))
    found = fasttext.train_supervised(str(folder / "train.txt"), dim=4, epoch=20, lr=1.0, thread=1, verbose=0, seed=1)
    found.save_model(str(folder / "model.bin"))
    return str(folder / "model.bin")


def test_documents_in_the_languages_are_kept(model):
    judge = pickle.loads(pickle.dumps(Language(model=model, languages=["en"]))).judge()
    kept = judge(document("the garden\nis old"))
    assert kept.reason is None
    assert kept.scores["language.score"] > 0.9
    removed = judge(document("die Brücke und\nder Garten"))
    assert removed.reason == "language.min_score"
    assert "language.score is" in removed.detail
    assert "the most probable language is de" in removed.detail


def test_without_a_threshold_all_documents_are_kept(model):
    judge = Language(model=model, languages=["en"], min_score=None).judge()
    assert judge(document("die Brücke und der Garten")).reason is None


def test_scores_depend_on_the_content_of_the_model(model, tmp_path):
    shutil.copyfile(model, tmp_path / "copy.bin")
    copy = Language(model=str(tmp_path / "copy.bin"), languages=["en"], min_score=0.1)
    assert copy.scores_made_from() == Language(model=model, languages=["en"]).scores_made_from()
    json.dumps(copy.made_from())


def test_a_missing_model_and_an_unknown_language_are_reported(model, tmp_path):
    with pytest.raises(ConfigError, match=r"model is 'lid.176.bin', but no such file exists: download"):
        Language(model="lid.176.bin", languages=["en"]).check()
    with pytest.raises(ConfigError, match=r"languages\[1\] is 'den', but the model has no such label; did you mean"):
        Language(model=model, languages=["en", "den"]).check()
    (tmp_path / "not_a_model.bin").write_text("text")
    with pytest.raises(ConfigError, match="fastText cannot read this file as a classifier"):
        Language(model=str(tmp_path / "not_a_model.bin"), languages=["en"]).check()
    with pytest.raises(ConfigError, match="languages is empty"):
        Language(model=model, languages=[])


def test_without_fasttext_the_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(ConfigError, match=r"fastText, which reads the model, is not installed: pip install"):
        Language(model=model, languages=["en"]).check()
