import json
import re
from collections import Counter
from pathlib import Path

import pytest

from data.config.tokenizer import TokenizerConfig, TokenizerKwargs
from data.tokenization.build import build_tokenizer
from tests.helpers.load_script import load_script

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "quickstart"


@pytest.fixture(scope="module")
def script():
    return load_script("dev/make_quickstart_data")


@pytest.fixture(scope="module")
def examples():
    lines = {name: (SHIPPED / f"{name}.jsonl").read_text().splitlines() for name in ("train", "heldout")}
    return {name: [json.loads(line) for line in found] for name, found in lines.items()}


@pytest.fixture(scope="module")
def tokenizer():
    kwargs = TokenizerKwargs(vocab_file=str(SHIPPED / "vocab.tiktoken"))
    return build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=kwargs))


def answer(task, prompt):
    """Solve the task by another method than the script."""
    numbers = [int(number) for number in re.findall(r"\d+", prompt)]
    word = prompt.rpartition(": ")[2].strip()
    if task == "shift":
        return word.translate(str.maketrans("abcdefghijklmnopqrstuvwxyz", "bcdefghijklmnopqrstuvwxyza"))
    in_order = {"reverse": lambda: reversed(word), "sort": lambda: sorted(word)}
    return "".join(in_order[task]()) if task in in_order else str({"largest": max, "add": sum}[task](numbers))


def test_the_shipped_files_are_what_the_script_writes(script, tmp_path):
    assert script.main(["--out", str(tmp_path)]) == 0
    for name in ("train.jsonl", "heldout.jsonl", "vocab.tiktoken"):
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes(), name


def test_another_seed_asks_other_questions(script):
    one, other = script.make_examples(1), script.make_examples(2)
    assert [len(part) for part in one] == [len(part) for part in other]
    asked = {example["prompt"] for example in one[1]} & {example["prompt"] for example in other[1]}
    assert len(asked) < 20


def test_every_answer_is_right(examples):
    for example in examples["train"] + examples["heldout"]:
        assert set(example) == {"prompt", "response", "task"}
        assert example["response"] == answer(example["task"], example["prompt"]), example


def test_heldout_is_balanced_and_not_in_the_training_data(examples):
    assert Counter(example["task"] for example in examples["heldout"]) == dict.fromkeys(
        ("reverse", "sort", "shift", "largest", "add"), 40
    )
    written = {"".join(sorted(example["prompt"])) for example in examples["train"]}
    assert not [example for example in examples["heldout"] if "".join(sorted(example["prompt"])) in written]
    for part in examples.values():
        assert len({example["prompt"] for example in part}) == len(part)


def test_the_words_in_questions_are_one_token_per_character(examples, tokenizer):
    assert tokenizer.vocab_size <= 320
    for example in examples["train"] + examples["heldout"]:
        response = tokenizer.encode(example["response"])
        assert [tokenizer.decode([token]) for token in response] == list(example["response"])
        prompt = [tokenizer.decode([token]) for token in tokenizer.encode(example["prompt"])]
        assert "".join(prompt) == example["prompt"]
        asked = re.findall(r"\d", example["prompt"]) or list(example["prompt"].partition(": ")[2].strip())
        assert [token for token in prompt if re.fullmatch(r"[a-z0-9]", token)] == asked


def test_the_quickstart_data_is_small():
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 3_000_000


def test_an_output_that_cannot_be_written_is_an_error(script, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert script.main(["--out", str(tmp_path / "file")]) == 2
    assert re.fullmatch(r"--out is '.*file', but it cannot be written: .+\n", capsys.readouterr().err)
