"""Questions of the tasks of the lm-evaluation-harness are those that the harness asks."""

import json
import sys

import pytest

from data.base.errors import ConfigError
from data.curation.base.document import KEPT, Document
from data.curation.decontamination.decontaminate import Decontaminate
from data.curation.decontamination.evals import EvalFiles, read_evals

ROWS = [
    {"note": "x", "question": " What is the largest city of France? ", "choices": ["Paris", "Lyon"], "label": 0},
    {"note": "y", "question": "Why?", "choices": ["It rains", "It snows"], "label": 1},
]
TASK = """\
include: base
task: cities
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}
test_split: test
"""
INSTRUCTIONS = "The following are multiple choice questions with answers about cities of the world."
BASE = f"""\
output_type: multiple_choice
doc_to_text: "{INSTRUCTIONS}\\n{{{{question.strip()}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
"""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of the datasets library, which the harness uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("lm_eval")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "base").write_text(BASE)
    (tmp_path / "cities.yaml").write_text(TASK.format(folder=tmp_path))
    return tmp_path


def read(path):
    return read_evals("mine", EvalFiles(lm_eval=str(path)))


def test_texts_are_rendered_and_the_question_is_a_column(folder):
    first, second = read(folder / "cities.yaml").questions
    assert first.texts[0] == f"{INSTRUCTIONS}\nWhat is the largest city of France?\nAnswer: Paris Lyon"
    assert (first.exact.strip(), second.exact) == ("What is the largest city of France?", "Why?")
    assert second.place == f"{folder}/cities.yaml question 2"


def test_instructions_of_the_template_are_not_searched(folder):
    judge = Decontaminate(evals={"cities": EvalFiles(lm_eval=str(folder / "cities.yaml"))}).judge()
    texts = [INSTRUCTIONS, f"{INSTRUCTIONS} Who?", "what is the LARGEST city of France", f"{INSTRUCTIONS} Why? Answer:"]
    removed = [judge(Document(1, "web", "a", 0, text, 1, {})) != KEPT for text in texts]
    assert removed == [False, False, True, True]


def test_the_tasks_own_query_for_decontamination_is_used(folder):
    with (folder / "cities.yaml").open("a") as file:
        file.write("should_decontaminate: true\ndoc_to_decontamination_query: note\n")
    assert [question.texts[0] for question in read(folder / "cities.yaml").questions] == ["x", "y"]


def test_functions_of_the_task_are_called(folder):
    (folder / "mine.py").write_text("def ask(doc):\n    return 'Q: ' + doc['question'].strip()\n")
    with (folder / "cities.yaml").open("a") as file:
        file.write("doc_to_text: !function mine.ask\n")
    first, _ = read(folder / "cities.yaml").questions
    assert (first.texts[0], first.exact.strip()) == (
        "Q: What is the largest city of France? Paris Lyon",
        "What is the largest city of France?",
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dataset_path: json", "dataset_path: cais/mmlu", "reads the dataset 'cais/mmlu' of the hub"),
        ("rows.jsonl", "none.jsonl", "none.jsonl', but no such file exists"),
        ("{{data_files", "{{data_files: [", "which does not define a task in YAML"),
        ("task: cities", "name: cities", "which does not define a task in YAML"),
        ("test_split: test", "test_split: tset", "this task cannot be loaded (KeyError: 'tset')"),
        (
            "test_split: test",
            'test_split: test\ndoc_to_text: "{{{{absent}}}}"',
            "cannot be loaded (UndefinedError: 'absent'",
        ),
    ],
)
def test_tasks_that_cannot_be_used_are_refused(folder, old, new, message):
    (folder / "cities.yaml").write_text(TASK.replace(old, new).format(folder=folder))
    with pytest.raises(ConfigError) as raised:
        read(folder / "cities.yaml")
    assert message in str(raised.value)
    assert raised.value.key == "lm_eval"


def test_a_missing_task_and_a_missing_harness_are_reported(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"lm_eval is 'none\.yaml', but no such file exists"):
        read("none.yaml")
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ConfigError, match=r"lm_eval needs the lm-evaluation-harness .*pip install -e '\.\[eval\]'"):
        read("none.yaml")
