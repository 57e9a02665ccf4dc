import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.base.errors import ConfigError, DataError, TemplateError
from data.examples.forms import PromptResponse
from tests.helpers.load_script import load_script
from tests.helpers.open_here import open_here
from tests.helpers.small_export import write_export
from train.config.sampling import Sampling
from train.generation.ask import ask
from train.generation.exact_match import exact_match, exact_match_result
from train.generation.open_model import default_precision, resolve_model
from train.generation.questions import as_question, encode, read_questions
from train.generation.results import MARKER, Result, keep, with_section
from train.generation.tasks import _limit_template, results_of, run_tasks
from train.hardware.device import choose_device

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = ["Sort: ba", "Reverse: xyz", "Sort: cab", "Count: 3", "Reverse: qr", "x"]
CHOICES = ["ab", "zyx", "abc"]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["ab", "zyx", "abc"]
doc_to_target: label
target_delimiter: "\\n"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 3.0}}
"""


@pytest.fixture(scope="module")
def opened(run):
    return open_here(run)


@pytest.fixture(scope="module")
def original(run, tmp_path_factory):
    return write_export(run, tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture
def exported(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "model"))


def test_a_folder_of_a_run_means_the_one_model_in_it(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "run.json").touch()
    assert resolve_model(tmp_path) == tmp_path / "checkpoints"
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").touch()
    with pytest.raises(ConfigError, match=r"contains .*/checkpoints and .*/hf: specify one of them"):
        resolve_model(tmp_path)


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with the tasks sorting and other, and a cache of the datasets library next to it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    # The harness records pip's list of packages, compilers and so on, which takes seconds per evaluation.
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": question, "label": number % 3} for number, question in enumerate(QUESTIONS)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("sorting", "other"):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=tmp_path / "rows.jsonl"))
    return folder


@torch.no_grad()
def most_likely(opened, question):
    """The choice with the highest probability after the question, according to our own model."""
    scores = []
    for choice in CHOICES:
        before, after = (opened.tokenizer.encode(text).tolist() for text in (question + "\n", choice))
        logits = opened.decoder.model(torch.tensor([before + after]), return_logits=True).logits_BSV[0]
        log_probs = logits[len(before) - 1 : -1].log_softmax(-1)
        scores.append(log_probs.gather(1, torch.tensor(after).unsqueeze(1)).sum().item())
    return max(range(3), key=scores.__getitem__)


def tasks_here(folder: Path, tasks: list[str], *, limit: int | None = None) -> dict[str, Result]:
    device = choose_device(None)
    return run_tasks(folder, tasks, batch_size=4, precision=default_precision(device), device=device, limit=limit)


@pytest.mark.slow
def test_the_harness_scores_are_our_models_log_probabilities(exported, tasks, opened):
    right = [most_likely(opened, question) == number % 3 for number, question in enumerate(QUESTIONS)]
    results = tasks_here(exported, [str(tasks)])
    assert set(results) == {"sorting", "other"}
    assert results["sorting"]["metrics"] == {"acc": pytest.approx(sum(right) / 6)}
    assert results["sorting"]["asked"] == 6
    assert results["sorting"]["version"] == 3.0
    assert results["sorting"]["stderr"]["acc"] > 0
    one = tasks_here(exported, [str(tasks / "other.yaml")], limit=2)
    assert one["other"]["metrics"] == {"acc": pytest.approx(sum(right[:2]) / 2)}
    assert (list(one), one["other"]["asked"]) == (["other"], 2)


def test_the_harness_renders_within_limits():
    def render(messages, tokenize=True):
        return "x" * 2**31 if messages == "go" else messages

    tokenizer = SimpleNamespace(apply_chat_template=render, name_or_path="some/model")
    _limit_template(tokenizer)
    assert tokenizer.apply_chat_template("a", tokenize=False) == "a"
    with pytest.raises(TemplateError, match=r"the chat template of some/model needs more than 1,024 MiB of memory"):
        tokenizer.apply_chat_template("go")


def test_tasks_are_not_run_on_weights_that_are_not_finite(exported, tasks):
    (file,) = exported.glob("*.safetensors")
    tensors = load_file(file)
    tensors["lm_head.weight"][0, 0] = torch.inf
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"^'{exported}', but there are NaN .* lm_head.weight in {file.name}: "):
        tasks_here(exported, [str(tasks / "sorting.yaml")])


@pytest.mark.slow
def test_missing_tasks_are_reported(exported, tasks, tmp_path):
    for name, message in (
        ("none/x.yaml", "--tasks contains 'none/x.yaml', but there is no such file or folder"),
        (str(exported), "which defines no task"),
        ("hellaswagg", r"'hellaswagg', which is not a task of the lm-evaluation-harness; did you mean hellaswag"),
    ):
        with pytest.raises(ConfigError, match=message):
            tasks_here(exported, [name])
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(
        ConfigError, match=r"'sorting', whose data does not exist \(.*rows.jsonl'\): add the data, or correct the task"
    ):
        tasks_here(exported, [str(tasks / "sorting.yaml")])


def test_without_the_harness_the_extra_is_named(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[eval\]'"):
        tasks_here(exported, ["x"])


def test_a_metric_has_its_own_standard_error():
    values = {"acc,none": 0.35, "acc_stderr,none": 0.1, "f1,strict": 0.2, "f1_stderr,strict": 0.3, "n,none": 4}
    found = results_of({"results": {"t": values}, "n-samples": {}, "versions": {}, "n-shot": {}})["t"]
    assert found["metrics"] == {"acc": 0.35, "f1,strict": 0.2, "n": 4}
    assert found["stderr"] == {"acc": 0.1, "f1,strict": 0.3}


def test_an_answer_is_exact_to_the_letter(opened):
    sampling = Sampling(max_new_tokens=3)
    (first,) = ask(opened, encode([as_question("Sort: ba")], opened, sampling), sampling, 1)
    ends = replace(opened, stop_token_ids=first.tokens[2:])
    greedy = opened.tokenizer.decode(first.tokens[:2])
    answers = (greedy, greedy + " ", greedy[:-1], "x" * 20)
    checked = exact_match(ends, [PromptResponse("Sort: ba", answer) for answer in answers], 3)
    assert [one.answer for one in checked] == [greedy] * 4
    assert [one.exact for one in checked] == [True, False, False, False]
    result = exact_match_result(checked)
    assert (result["asked"], result["metrics"]) == (4, {"exact_match": 0.25})
    assert result["stderr"]["exact_match"] == pytest.approx((0.25 * 0.75 / 4) ** 0.5)


def test_a_missing_answer_is_reported_with_its_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"x.jsonl:2: response is missing"):
        read_questions(tmp_path / "x.jsonl", with_answers=True)


def test_a_preprocessor_makes_questions_of_any_rows(tmp_path, capsys):
    rows = [{"question": "a", "answer": "b"}, {"question": "c", "answer": None}]
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    evaluate = load_script("evaluate")
    args = [str(tmp_path), "--exact_match", str(file)]

    def asked(*more):
        return evaluate._read_questions(evaluate._parser().parse_args([*args, *more]))

    with pytest.raises(DataError, match=r"x.jsonl:2: response is null"):
        asked("--preprocessor", "{prompt: question, response: answer}")
    with pytest.raises(DataError, match="select columns with --preprocessor"):
        asked()
    assert asked("--preprocessor", f"{__name__}:answered") == [PromptResponse("a", "b")]
    assert "--preprocessor skipped 1 of the rows in this file" in capsys.readouterr().out
    assert evaluate.main([str(tmp_path), "--tasks", "x", "--preprocessor", "alpaca"]) == 2


def answered(row):
    return {"prompt": row["question"], "response": row["answer"]} if row["answer"] else None


RESULT = {"asked": 4, "metrics": {"acc": 0.25}, "stderr": {"acc": 0.1}}


def test_results_are_kept_until_they_are_replaced(exported):
    (exported / "README.md").write_text("# Mine\n\nwords\n")
    keep(exported, {"one": RESULT, "a|b": RESULT}, "fp32")
    (exported / "README.md").write_text((exported / "README.md").read_text() + "more words\n")
    kept = keep(exported, {"one": {**RESULT, "metrics": {"acc": 0.5}}}, "fp32")
    card = (exported / "README.md").read_text()
    assert json.loads((exported / "evaluation.json").read_text()) == kept
    assert kept["one"]["metrics"] == {"acc": 0.5}
    assert kept["one"]["versions"].keys() == {"python", "lm-eval", "torch", "transformers"}
    assert card.startswith("# Mine\n\nwords\n")
    assert card.endswith("more words\n")
    assert card.count(MARKER) == 2
    assert "| one | acc | 0.5000 ± 0.1000 | 4 |" in card
    assert "| a\\|b | acc | 0.2500" in card
    assert "0.2500" not in card.split("| one |")[1].split("\n")[0]


def test_a_folder_without_a_card_gets_one(exported):
    (exported / "README.md").unlink(missing_ok=True)
    keep(exported, {"one": RESULT}, "fp32")
    assert (exported / "README.md").read_text().startswith(f"# model\n\n{MARKER}\n## Benchmarks\n")


def test_backslashes_in_a_card_are_kept(exported):
    assert with_section(f"a\n{MARKER}old{MARKER}\nb", "\\1 \\n\n") == f"a\n{MARKER}\n\\1 \\n\n{MARKER}\nb"


@pytest.fixture(scope="module")
def script():
    return load_script("evaluate")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate: add --tasks, --exact_match, or both"),
        (["--tasks", "x", "--batch_size", "0"], "--batch_size is 0"),
        (["--tasks", "x", "--limit", "0"], "--limit is 0"),
        (["--tasks", "x", "--num_fewshot", "-1"], "--num_fewshot is -1"),
        (["--exact_match", "x", "--num_fewshot", "3"], "--num_fewshot needs --tasks"),
        (
            ["--tasks", "x"],
            "is not an exported model, which --tasks requires: export it with scripts/convert_checkpoint_to_hf.py",
        ),
        (["--exact_match", "none.jsonl"], "none.jsonl cannot be read"),
        (["--tasks", "x", "--json", "none/y"], "--json is 'none/y', but its folder does not exist or is not writable"),
    ],
)
def test_invalid_arguments_are_reported(run, script, capsys, arguments, message):
    assert script.main([str(run), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_results_that_cannot_be_saved_are_rejected_before_evaluation(exported, script, capsys):
    (exported / "evaluation.json").write_text("[]")
    assert script.main([str(exported), "--tasks", "x"]) == 2
    assert "evaluation.json does not contain evaluation results" in capsys.readouterr().err


def test_a_checkpoint_answers_exactly_too(run, script, tmp_path, capsys):
    (tmp_path / "q.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    assert script.main([str(run), "--exact_match", str(tmp_path / "q.jsonl"), "--json", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["q.jsonl"]["asked"] == 1
    assert "kept in" not in capsys.readouterr().out
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "ep0-ba10", "tokenizer"]


@pytest.mark.slow
@pytest.mark.subprocess
def test_the_script_without_a_network(exported, tasks, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), str(exported), "--tasks", str(tasks)]
    command += ["--exact_match", str(tmp_path / "q.jsonl"), "--device", "cpu"]
    env = {key: value for key, value in os.environ.items() if not key.endswith(("RANK", "WORLD_SIZE"))}
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("sorting", "other", "q.jsonl", "exact_match", "acc"))
    assert set(json.loads((exported / "evaluation.json").read_text())) == {"sorting", "other", "q.jsonl"}
    assert "Traceback" not in done.stderr
