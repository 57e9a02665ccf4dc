import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.base.errors import ConfigError, DataError
from data.examples.forms import PromptResponse
from tests.helpers.load_script import load_script
from tests.helpers.open_here import open_here
from tests.helpers.small_export import write_export
from train.config.sampling import Sampling
from train.generation.ask import ask, in_order
from train.generation.chat import chat
from train.generation.generate import Answer, generate
from train.generation.questions import as_question, check_room, encode, encode_one, read_questions

ROOT = Path(__file__).resolve().parents[2]
SHORT = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return write_export(run, tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture(scope="module")
def opened(run):
    return open_here(run)


@pytest.fixture(scope="module")
def script():
    return load_script("generate")


def test_prompts_of_a_text_file_are_its_lines(tmp_path):
    (tmp_path / "prompts.txt").write_text("one\n\n  two\r\nthree")
    assert read_questions(tmp_path / "prompts.txt") == [PromptResponse(text, "") for text in ("one", "  two", "three")]


def test_prompts_of_jsonl_need_no_answers(tmp_path):
    asked, reply = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    rows = [{"messages": [asked]}, {"messages": [asked, reply]}, {"messages": [asked, reply, asked]}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [question.messages[:-1] for question in read_questions(tmp_path / "x.jsonl")] == [
        [asked],
        [asked],
        [asked, reply, asked],
    ]
    (tmp_path / "y.jsonl").write_text('{"prompt": "a\\n", "id": 3}\n')
    assert [question.prompt for question in read_questions(tmp_path / "y.jsonl")] == ["a\n"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "none.jsonl cannot be read: No such file"),
        ("x.txt", b"\n\n", "x.txt has no prompts: write one per line"),
        ("x.txt", b"fine\n\xff\n", "x.txt:2 is not UTF-8 text"),
        ("x.jsonl", b'{"prompt": "a"}\n{"prompt": 3}\n', "x.jsonl:2: prompt is 3"),
        ("x.jsonl", b'{"prompt": ""}\n', "x.jsonl:1: prompt is empty"),
        ("x.jsonl", b"hello\n", "x.jsonl:1: is not JSON"),
        (
            "x.jsonl",
            b'{"promt": "a", "response": "b"}\n',
            "x.jsonl:1: the row has neither prompt nor messages, but promt, resp",
        ),
        ("x.jsonl", b'{"text": "a"}\n', "x.jsonl has text, but a question must be a prompt or messages"),
        ("x.jsonl", b'{"messages": [{"role": "boss", "content": "a"}]}\n', r"x.jsonl:1: messages\[0\].role is 'boss'"),
    ],
)
def test_errors_in_a_file_of_prompts_name_the_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ConfigError, DataError), match=message):
        read_questions(tmp_path / name)


def test_a_question_is_encoded_as_in_training(opened):
    tokenizer = opened.tokenizer
    question = as_question("is <|im_end|> text?", chat=True, system_prompt="Be brief.")
    text = tokenizer.decode(encode_one(question, tokenizer))
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nis <|im_end|> text?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ends = encode_one(question, tokenizer).count(tokenizer.special_tokens["<|im_end|>"])
    assert ends == 2


def test_a_prompt_that_leaves_no_room_is_named(opened):
    questions = [as_question("x"), as_question("y" * 64)]
    with pytest.raises(DataError, match=r"prompt 2 \('yyyy.*'\) has 64 tokens, but the model supports only 64"):
        encode(questions, opened, SHORT)
    with pytest.raises(DataError, match=r"'a\\udcff' is not UTF-8 text \(character 2\)"):
        encode([as_question("a\udcff")], opened, SHORT)
    with pytest.raises(DataError, match=r"prompt 1 \(''\) is empty"):
        encode([as_question("")], opened, SHORT)


def test_output_of_later_prompts_waits_for_its_turn():
    done = Answer([], "", ended=True)
    events = [(1, "b", None), (0, "a", None), (1, "", done), (2, "c", None), (0, "A", None), (0, "", done)]
    events += [(2, "C", None), (2, "", done)]
    ordered = list(in_order(iter(events), 3))
    assert [piece for _, piece, _ in ordered] == ["a", "A", "", "b", "", "c", "C", ""]


def test_batches_give_the_answers_of_single_prompts(opened):
    sampled = Sampling(max_new_tokens=8, temperature=1.0)
    prompts = encode([as_question(text) for text in ("one", "two more", "3")], opened, sampled)
    texts = {0: "", 1: "", 2: ""}

    def on_text(number, piece):
        texts[number] += piece

    answers = list(ask(opened, prompts, sampled, 2, on_text))
    assert [answer.text for answer in answers] == list(texts.values())
    assert answers == list(ask(opened, prompts, sampled, 1))
    assert answers == list(ask(opened, prompts, sampled, 16))


def converse(opened, *lines, **settings):
    """The output of a conversation with these lines, and the prompts that the model read."""
    inputs, written, read = iter(lines), [], []

    def next_line():
        try:
            return next(inputs)
        except StopIteration:
            raise EOFError from None

    start = opened.decoder.start
    opened.decoder.start = lambda prompts: (read.extend(map(opened.tokenizer.decode, prompts)), start(prompts))[1]
    try:
        chat(opened, Sampling(max_new_tokens=4, **settings), None, next_line, written.append)
    finally:
        del opened.decoder.start
    return "".join(written), read


def test_a_conversation_keeps_its_context_until_a_new_one_begins(opened):
    written, read = converse(opened, "a", " ", "b", "/new", "c", "/exit", "d")
    assert read[0] == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    (first,) = ask(opened, [encode_one(as_question("a", chat=True), opened.tokenizer)], Sampling(max_new_tokens=4), 1)
    assert written.startswith(first.text + "\n")
    assert read[1] == f"{read[0]}{first.text}<|im_end|>\n" + read[0].replace("\na<", "\nb<")
    assert read[2] == read[0].replace("\na<", "\nc<")
    assert len(read) == 3


def test_a_turn_that_leaves_no_room_is_removed(opened):
    written, read = converse(opened, "y" * 80, "z")
    assert "the model supports only 64; /new starts a new conversation\n" in written
    assert len(read) == 1
    assert "y" not in read[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FOLDER", "x", "--batch_size", "0"], "--batch_size is 0"),
        (["FOLDER", "x", "--file", "y"], "--file and prompts are both given"),
        (["FOLDER", "--output", "y.jsonl"], "--output is given without prompts"),
        (
            ["FOLDER", "x", "--output", "y.csv"],
            "--output is 'y.csv', but answers are written as JSON lines: specify a .jsonl file",
        ),
        (
            ["FOLDER", "x", "--output", "quickstart/heldout.jsonl"],
            "--output is 'quickstart/heldout.jsonl', which already exists: specify another",
        ),
        (
            ["FOLDER", "x", "--output", "none/y.jsonl"],
            "--output is 'none/y.jsonl', but its folder does not exist or is not writable",
        ),
        (["FOLDER", "x", "--system_prompt", "y"], "plain prompts have no system message: add --chat"),
        (["FOLDER", "--chat", "--file", "y.jsonl"], "a .jsonl file defines its own conversations"),
        (["FOLDER", "x", "--top_p", "2", "--temperature", "1"], "--top_p is 2.0, but it must be in (0, 1]"),
        (["FOLDER", "x", "--top_k", "3"], "--temperature is 0 (greedy decoding), but top_k or top_p is set"),
        (["none", "x"], "none is neither a checkpoint"),
        (["tests", "x"], "tests is neither a checkpoint"),
    ],
)
def test_invalid_arguments_are_reported(script, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(ROOT)
    assert script.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_more_new_tokens_than_the_model_has_room_for_are_refused(script, run, capsys):
    assert script.main([str(run), "x", "yy", "--max_new_tokens", "63"]) == 2
    sizes = " and the longest prompt has 2 tokens, in total 65 tokens, but the model supports only 64"
    fix = "set --max_new_tokens to at most 62"
    assert capsys.readouterr().err.endswith(f"error: --max_new_tokens is 63{sizes}: {fix}\n")
    check_room([[0], [0, 0]], 62, 64)
    # A default is limited by the model's max_seq_len.
    assert script.main([str(run), "y" * 62]) == 0


def test_folders_without_a_model_are_reported(exported, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a PEFT adapter, not a complete model"):
        open_here(tmp_path / "adapter")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match=r"^'.*bert', but "):
        open_here(tmp_path / "bert")
    bare = tmp_path / "bare"
    shutil.copytree(exported, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ConfigError, match="bare has no tokenizer"):
        open_here(bare)
    shutil.copytree(exported, tmp_path / "endless")
    for invalid in ('{"eos_token_id": "x"}', "[]"):
        (tmp_path / "endless" / "generation_config.json").write_text(invalid)
        with pytest.raises(ConfigError, match=r"generation_config.json: eos_token_id must be an id or a list of ids"):
            open_here(tmp_path / "endless")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in exported.iterdir():
        if file.suffix != ".safetensors":
            (broken / file.name).symlink_to(file)
    with pytest.raises(ConfigError, match="safetensors is missing"):
        open_here(broken)


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(run, exported, monkeypatch):
    monkeypatch.setattr("train.generation.open_model.available_memory", lambda device: 1e5)
    for folder in (run, exported):
        with pytest.raises(ConfigError, match=r"needs [\d.]+kb in fp32, but .* has 97.65kb: use a larger machine"):
            open_here(folder)


def test_a_checkpoint_without_its_accompanying_files(run, tmp_path):
    (tmp_path / "ep0-ba10").symlink_to(run / "ep0-ba10")
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in (run / "ep0-ba10").iterdir():
        (alone / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match=r"config.yaml does not exist, but .* the model's shape"):
        open_here(alone)


def run_script(*arguments, stdin=""):
    command = [sys.executable, str(ROOT / "scripts" / "generate.py"), "--device", "cpu", *map(str, arguments)]
    env = {key: value for key, value in os.environ.items() if not key.endswith(("RANK", "WORLD_SIZE"))}
    return subprocess.run(command, input=stdin, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.subprocess
def test_the_script_writes_answers_and_streams_them(exported, tmp_path, script, capsys):
    (tmp_path / "p.txt").write_text("Reverse: abc\nx\n")
    output = tmp_path / "answers.jsonl"
    common = [exported, "--max_new_tokens", "6"]
    done = run_script(*common, "--file", tmp_path / "p.txt", "--output", output)
    assert (done.returncode, done.stdout) == (0, f"answers written to {output}: 2\n")
    assert "Traceback" not in done.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["Reverse: abc", "x"]
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    assert script.main([*map(str, common), "Reverse: abc"]) == 0
    assert capsys.readouterr().out == rows[0]["response"] + "\n"
    assert script.main([*map(str, common), "Reverse: abc", "x"]) == 0
    shown = capsys.readouterr().out
    assert shown == f"> Reverse: abc\n{rows[0]['response']}\n\n> x\n{rows[1]['response']}\n"


@pytest.mark.subprocess
def test_a_piped_conversation_on_a_checkpoint(run, opened):
    done = run_script(run, "--max_new_tokens", "4", stdin="hello\n")
    assert done.returncode == 0, done.stderr
    prompt = encode_one(as_question("hello", chat=True), opened.tokenizer)
    tokens = [row[0] for row in generate(opened.decoder, [prompt], Sampling(max_new_tokens=4), opened.stop_token_ids)]
    assert done.stdout == opened.tokenizer.decode([token for token in tokens if token is not None]) + "\n"
    assert done.stderr == f"{run / 'ep0-ba10'} loaded by Dropless in fp32 on cpu\n"
