import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from streaming import StreamingDataset

from data.base.errors import ConfigError, setting, settings_written
from data.preparation.conversion.command_line import finetuning_parser, main_of, text_parser
from data.preparation.conversion.convert import convert_finetuning, convert_text
from data.preparation.conversion.flags import FLAGS, as_flag
from tests.helpers.opened_files import opened_files
from tests.helpers.prepared import contents, documents_of, manifest_of, samples_of
from tests.helpers.stores import serve
from tests.helpers.toy_tokenizer import ToyTokenizer, questions, write_jsonl

ROOT = Path(__file__).parents[2]
finetuning = main_of(finetuning_parser(None), convert_finetuning)
text = main_of(text_parser(None), convert_text)


@pytest.fixture
def toy(monkeypatch):
    """Make `--tokenizer toy` the tokenizer of bytes."""
    monkeypatch.setattr("data.preparation.conversion.arguments.build_tokenizer", lambda config: ToyTokenizer())


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Files of two splits."""
    write_jsonl(tmp_path / "a.jsonl", questions(50))
    write_jsonl(tmp_path / "b.jsonl", questions(10, start=50))
    return [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]


def pairs(examples) -> list[tuple[str, str]]:
    return sorted((each["prompt"], each["response"]) for each in examples)


def test_each_split_becomes_a_folder_of_rows(tmp_path, toy, files, capsys):
    flags = ["--dataset", "json", "--splits", "train", "test", "--data_files", *files, "--skip-preprocessing"]
    flags += ["--out_root", str(tmp_path / "out"), "--tokenizer", "toy", "--max_seq_len", "64", "--num_workers", "1"]
    assert finetuning(flags) == 0
    assert sorted(documents_of(tmp_path / "out" / "train")) == pairs(questions(50))
    assert sorted(documents_of(tmp_path / "out" / "test")) == pairs(questions(10, start=50))
    assert manifest_of(tmp_path / "out" / "train")["max_seq_len"] == 64
    before = contents(tmp_path / "out")
    assert "was already complete" not in capsys.readouterr().out
    assert finetuning(flags) == 0
    assert contents(tmp_path / "out") == before
    assert capsys.readouterr().out.count("was already complete") == 2


def test_a_second_conversion_reads_the_files_only_with_rehash(tmp_path, toy, files, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the record of the files goes
    os.utime(files[0], (time.time() - 3600,) * 2)
    flags = ["--dataset", files[0], "--splits", "train", "--skip-preprocessing", "--out_root", "out"]
    flags += ["--tokenizer", "toy", "--max_seq_len", "64", "--num_workers", "1"]
    for more, is_read in ([], True), ([], False), (["--rehash"], True):
        with opened_files() as opened:
            assert finetuning([*flags, *more]) == 0
        assert (files[0] in opened) == is_read


def test_flags_reach_the_rows(tmp_path, toy, files):
    flags = ["--dataset", files[0], "--splits", "train", "--skip-preprocessing", "--out_root", str(tmp_path / "out")]
    flags += ["--tokenizer", "toy", "--max_seq_len", "64", "--target_prompts", "all", "--packing", "none"]
    assert finetuning(flags) == 0
    rows = samples_of(tmp_path / "out" / "train")
    assert len(rows) == 50
    assert all(row["loss_mask"].all() for row in rows)


@pytest.mark.parametrize("tokenizer", [["--tokenizer", "toy", "--max_seq_len", "32"], []])
def test_bad_and_long_examples_are_dropped_where_that_is_asked_for(tmp_path, toy, capsys, tokenizer):
    rows = [*questions(5), {"prompt": "a"}, {"prompt": "a", "response": "b" * 40}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    flags = ["--dataset", str(tmp_path / "a.jsonl"), "--splits", "train", "--skip-preprocessing", *tokenizer]
    flags += ["--out_root", str(tmp_path / "out"), "--on_bad_example", "drop"]
    assert finetuning([*flags, *(["--excess_length", "drop"] if tokenizer else [])]) == 0
    message = manifest_of(tmp_path / "out" / "train")
    assert message["examples_kept"] == (5 if tokenizer else 6)
    assert message["dropped"]["bad rows"] == 1
    assert "bad rows: response is missing (1)" in capsys.readouterr().out


def test_an_example_that_is_too_long_is_an_error_where_that_is_asked_for(tmp_path, toy, capsys):
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "response": "b" * 40}])
    flags = ["--dataset", str(tmp_path / "a.jsonl"), "--splits", "train", "--skip-preprocessing", "--tokenizer", "toy"]
    flags += ["--max_seq_len", "32", "--out_root", str(tmp_path / "out"), "--excess_length"]
    assert finetuning([*flags, "error"]) == 2
    assert "or set --excess_length truncate_response or drop" in capsys.readouterr().err
    assert finetuning([*flags, "truncate_response"]) == 0
    assert finetuning([*flags, "drop"]) == 2
    assert "--excess_length was truncate_response, now drop" in capsys.readouterr().err


@pytest.mark.parametrize("preprocessor", [["--preprocessor", "dolly"], ["--skip-preprocessing"]])
def test_without_a_tokenizer_it_writes_llm_foundrys_columns(tmp_path, preprocessor):
    row = {"instruction": "Say b.", "context": "", "response": "b"}
    rows = [row] if "dolly" in preprocessor else [{"prompt": "a", "completion": "b", "id": 1}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    flags = ["--dataset", "json", "--splits", "train", "--data_files", str(tmp_path / "a.jsonl"), *preprocessor]
    assert finetuning([*flags, "--out_root", str(tmp_path / "out")]) == 0
    (sample,) = samples_of(tmp_path / "out" / "train")
    prompt = "### Instruction:\nSay b.\n\n### Response:\n" if "dolly" in preprocessor else "a"
    assert sample == {"prompt": prompt, "response": "b"}


def test_a_file_may_have_a_name_that_is_not_utf8(tmp_path):
    file = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    write_jsonl(file, [{"prompt": "a", "response": "b"}])
    flags = ["--dataset", str(file), "--splits", "train", "--skip-preprocessing", "--out_root", str(tmp_path / "out")]
    assert finetuning(flags) == 0
    assert samples_of(tmp_path / "out" / "train") == [{"prompt": "a", "response": "b"}]


def test_columns_are_named_on_the_command_line(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"q": "a", "a": "b"}])
    flags = ["--dataset", "json", "--splits", "train", "--data_files", str(tmp_path / "a.jsonl")]
    flags += ["--preprocessor", "{prompt: q, response: a}"]
    assert finetuning([*flags, "--out_root", str(tmp_path / "out")]) == 0
    assert samples_of(tmp_path / "out" / "train") == [{"prompt": "a", "response": "b"}]


def test_streaming_reads_conversations_in_their_order(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "b", "train": i > 4}]}
        for i in range(9)
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    flags = ["--dataset", "json", "--splits", "train", "--data_files", str(tmp_path / "a.jsonl")]
    assert finetuning([*flags, "--skip-preprocessing", "--out_root", str(tmp_path / "out")]) == 0
    dataset = StreamingDataset(local=str(tmp_path / "out" / "train"), batch_size=1, shuffle=False)
    assert [dataset[i] for i in range(9)] == rows


def test_tools_have_no_column_of_llm_foundry_s(tmp_path, capsys):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write_jsonl(tmp_path / "a.jsonl", [{"messages": messages, "tools": [{"function": {"name": "add"}}]}])
    flags = ["--dataset", "json", "--splits", "train", "--data_files", str(tmp_path / "a.jsonl")]
    assert finetuning([*flags, "--skip-preprocessing", "--out_root", str(tmp_path / "out")]) == 2
    assert "a row contains tools, which LLM Foundry's columns do not support" in capsys.readouterr().err


def test_bad_rows_are_refused_without_a_tokenizer_too(tmp_path, capsys):
    write_jsonl(tmp_path / "a.jsonl", [*questions(3), {"prompt": "a", "response": ""}])
    flags = ["--dataset", "json", "--splits", "train", "--data_files", str(tmp_path / "a.jsonl")]
    assert finetuning([*flags, "--skip-preprocessing", "--out_root", str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'a.jsonl'}:4: response is empty" in capsys.readouterr().err
    assert not (tmp_path / "out" / "train").exists()


def test_a_preprocessor_that_exits_is_an_error_without_a_tokenizer_too(tmp_path, monkeypatch, files, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "exits_at_once.py").write_text("def f(row):\n    raise SystemExit\n")
    flags = ["--dataset", files[0], "--splits", "train", "--preprocessor", "exits_at_once:f"]
    assert finetuning([*flags, "--out_root", str(tmp_path / "out")]) == 2
    assert (
        "--preprocessor is 'exits_at_once:f', but this function ended its process: exit code 0"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("keep", [True, False])
def test_a_remote_out_root_keeps_a_local_copy_where_one_is_named(tmp_path, monkeypatch, toy, files, keep):
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset", files[0], "--splits", "train", "--skip-preprocessing", "--tokenizer", "toy"]
    flags += ["--local", str(tmp_path / "copy"), "--out_root"] if keep else ["--out_root", "out", "--remote"]
    assert finetuning([*flags, str(tmp_path / "remote")]) == 0
    local = tmp_path / ("copy" if keep else "out")
    assert contents(tmp_path / "remote" / "train") == contents(local / "train")


@pytest.mark.parametrize(
    ("flags", "remote"),
    [
        (["--out_root", "s3://bucket/rows"], "s3://bucket/rows/train"),
        (["--out_root", "s3://bucket/rows", "--local", "copy"], None),
        (["--out_root", "out", "--remote", "s3://bucket/rows"], None),
    ],
)
def test_tasks_of_spark_upload_parts_if_the_output_is_only_in_a_store(monkeypatch, toy, files, flags, remote):
    engines = []
    monkeypatch.setattr(
        "data.preparation.conversion.convert.prepare_into", lambda *args, **kwargs: engines.append(kwargs["engine"])
    )
    monkeypatch.setattr("shutil.rmtree", lambda folder: None)
    flags += ["--dataset", "json", "--splits", "train", "--data_files", files[0], "--skip-preprocessing"]
    assert finetuning([*flags, "--tokenizer", "toy", "--engine", "spark"]) == 0
    assert [(engine.name, engine.remote) for engine in engines] == [("spark", remote)]


def test_s3_gets_all_of_it_and_nothing_stays(tmp_path, monkeypatch, toy, files):
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.chdir(tmp_path)
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    for name, value in (*((key, "testing") for key in keys), ("S3_ENDPOINT_URL", f"http://{host}:{port}")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        import boto3

        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="bucket")
        flags = ["--dataset", files[0], "--splits", "train", "--skip-preprocessing", "--tokenizer", "toy"]
        assert finetuning([*flags, "--out_root", "s3://bucket/rows"]) == 0
        found = {item["Key"] for item in client.list_objects_v2(Bucket="bucket")["Contents"]}
        names = ("index.json", "manifest.json", "shard.00000.00.mds", "documents.00000.bin")
        assert found == {f"rows/train/{name}" for name in names}
        assert not list((tmp_path / ".cache").rglob("*.mds"))
        assert finetuning([*flags, "--out_root", "s3://no-such-bucket/rows"]) == 2
    finally:
        server.stop()


def test_files_in_a_store_become_the_same_rows_as_local_files(tmp_path, monkeypatch, toy):
    write_jsonl(tmp_path / "a.jsonl", questions(3000))
    monkeypatch.setattr("data.preparation.parts.plan.SLICE_BYTES", 1 << 14)
    flags = ["--splits", "train", "--skip-preprocessing", "--tokenizer", "toy", "--max_seq_len", "8", "--num_workers"]
    with serve("s3") as server:
        server.put("in/a.jsonl", (tmp_path / "a.jsonl").read_bytes())
        for number, place in enumerate((str(tmp_path), f"{server.url}/in")):
            files = ["--dataset", "json", "--data_files", f"{place}/*.jsonl", "--out_root", str(tmp_path / f"{number}")]
            assert finetuning([*files, *flags, "2"]) == 0
    local, remote = ({**contents(tmp_path / f"{number}" / "train")} for number in range(2))
    assert len(local) > 8
    for rows in (local, remote):
        del rows["manifest.json"]
    assert remote == local


def test_texts_of_a_folder_become_full_rows(tmp_path, toy):
    for number in range(5):
        file = tmp_path / "in" / f"folder{number % 2}" / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{number} " * (20 + number))
    flags = ["--input_folder", str(tmp_path / "in"), "--output_folder", str(tmp_path / "out"), "--tokenizer", "toy"]
    assert text([*flags, "--concat_tokens", "32", "--compression", "zstd"]) == 0
    tokens = np.concatenate([row["tokens"] for row in samples_of(tmp_path / "out")])
    expected = [f"{number} " * (20 + number) for number in (0, 2, 4, 1, 3)]
    assert bytes(token % 256 for token in tokens.tolist()).split(b"\0")[:-1] == [each.encode() for each in expected]


def test_a_dataset_of_texts_becomes_rows(tmp_path, toy):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "abc" * 9}, {"text": "de"}])
    flags = ["--dataset", "json", "--splits", "train", "--data_files", str(tmp_path / "a.jsonl"), "--tokenizer", "toy"]
    assert text([*flags, "--max_seq_len", "8", "--out_root", str(tmp_path / "out")]) == 0
    assert manifest_of(tmp_path / "out" / "train")["tokens_kept"] == 27 + 1 + 2 + 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--dataset is 'json', which has no registered preprocessing function"),
        (["--preprocessor", "dollo"], "--preprocessor is 'dollo', but no such function is registered"),
        (
            ["--preprocessor", "{prompt: a"],
            "--preprocessor is '{prompt: a', but a mapping must have the form {prompt: COLUMN",
        ),
        (["--preprocessor", "{prompt: a, b: c}"], "--preprocessor is {'prompt': 'a', 'b': 'c'}, but a mapping must be"),
        (["--skip-preprocessing", "--splits", "a", "b"], "--data_files lists 1 and --splits lists 2"),
        (
            ["--skip-preprocessing", "--splits", "../a"],
            "--splits has '../a', but each split must be a valid folder name",
        ),
        (
            ["--skip-preprocessing", "--data_files", "hf://a/b.jsonl"],
            "--data_files has 'hf://a/b.jsonl', but data files",
        ),
        (["--skip-preprocessing", "--max_seq_len", "1"], "--max_seq_len is 1, but it must be at least 2"),
        (["--skip-preprocessing", "--target_prompts", "some"], "--target_prompts is 'some', but it must be none, all"),
        (["--skip-preprocessing", "--compression", "rar"], "--compression is 'rar', but it must be one of"),
        (["--skip-preprocessing", "--num_workers", "-1"], "--num_workers is -1, but it must be at least 0"),
        (["--skip-preprocessing", "--tokenizer", "tiktoken"], "--tokenizer_kwargs requires exactly one of model_name"),
        (["--skip-preprocessing", "--excess_length", "drop"], "--excess_length is drop, which requires --tokenizer"),
        (["--skip-preprocessing", "--tokenizer_kwargs", "{}"], "--tokenizer_kwargs requires --tokenizer"),
        (
            ["--skip-preprocessing", "--tokenizer", "a", "--tokenizer_kwargs", "{a"],
            "--tokenizer_kwargs is '{a', which is not JSON",
        ),
        (
            ["--skip-preprocessing", "--tokenizer", "a", "--tokenizer_kwargs", '{"padding": 1}'],
            "--tokenizer_kwargs padding is not a key; the keys in --tokenizer_kwargs are model_name",
        ),
        (
            ["--skip-preprocessing", "--tokenizer", "tiktoken", "--tokenizer_kwargs", '{"vocab_file": 3}'],
            "--tokenizer_kwargs vocab_file is 3, but it must be a string: write '3' in quotes",
        ),
    ],
)
def test_invalid_flags_are_reported_in_one_line(tmp_path, capsys, flags, says):
    write_jsonl(tmp_path / "a.jsonl", questions(3))
    base = ["--dataset", "json", "--data_files", str(tmp_path / "a.jsonl"), "--out_root", str(tmp_path / "out")]
    splits = [] if "--splits" in flags else ["--splits", "train"]
    assert finetuning([*base, *splits, *flags]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "in_yaml", "flag"),
    [
        ("hf_name", None, "hf_name", "--dataset"),
        ("hf_name", "json", "hf_name: json", "--dataset json"),
        (
            "preprocessing_fn",
            {"prompt": "a b", "response": "c"},
            "preprocessing_fn: {prompt: a b, response: c}",
            "--preprocessor '{prompt: a b, response: c}'",
        ),
        (
            "tokenizer.chat_template_drops",
            ["system", "tools"],
            "tokenizer.chat_template_drops: [system, tools]",
            "--chat_template_drops system tools",
        ),
        ("tokenizer.chat_date", "2026-11-29", "tokenizer.chat_date: '2026-11-29'", "--chat_date 2026-11-29"),
        ("tokenizer.kwargs.vocab_file", None, "tokenizer.kwargs.vocab_file", "--tokenizer_kwargs vocab_file"),
        ("safe_load", False, "safe_load: false", "safe_load: false"),
    ],
)
def test_errors_name_settings_as_the_user_writes_them(key, value, in_yaml, flag):
    error = ConfigError(f"is wrong: write {setting(key, value)}", key=key)
    assert (str(error), error.key) == (f"{key} is wrong: write {in_yaml}", key)
    with settings_written(as_flag):
        error = ConfigError(f"is wrong: write {setting(key, value)}", key=key)
    assert (str(error), error.key) == (f"{as_flag(key)} is wrong: write {flag}", key)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_rows_that_workers_refuse_name_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "refuses_rows.py").write_text("def f(row):\n    raise ValueError('no')\n")
    write_jsonl(tmp_path / "a.jsonl", questions(3))
    flags = ["--dataset", str(tmp_path / "a.jsonl"), "--splits", "train", "--preprocessor", "refuses_rows:f"]
    assert finetuning([*flags, "--out_root", str(tmp_path / "out")]) == 2
    assert "a.jsonl:1: --preprocessor raised ValueError: no" in capsys.readouterr().err


def test_quoted_values_are_not_changed():
    with settings_written(as_flag):
        assert str(ConfigError("has 'hf_name', but split it", key="split")) == "--splits has 'hf_name', but split it"


def test_each_flag_that_errors_name_is_one_of_the_command_line():
    known = {flag for parser in (finetuning_parser(None), text_parser(None)) for flag in parser._option_string_actions}
    assert set(FLAGS.values()) <= known


def test_a_command_that_an_error_suggests_works(tmp_path, capsys):
    """A conversation with a tool, which ChatML does not support."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write_jsonl(tmp_path / "a.jsonl", [{"messages": messages, "tools": [{"function": {"name": "add"}}]}] * 3)
    tokenizer = json.dumps({"vocab_file": str(ROOT / "quickstart" / "vocab.tiktoken")})
    flags = ["--dataset", str(tmp_path / "a.jsonl"), "--splits", "train", "--skip-preprocessing"]
    flags += ["--tokenizer", "tiktoken", "--tokenizer_kwargs", tokenizer, "--out_root", str(tmp_path / "out")]
    assert finetuning(flags) == 2
    suggested = capsys.readouterr().err.strip().rpartition("allow the omission with ")[2].split()
    assert suggested == ["--chat_template_drops", "tools"]
    assert finetuning([*flags, *suggested]) == 0


def test_rows_without_text_are_dropped_where_that_is_asked_for(tmp_path, toy):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "abc"}, {"text": ""}])
    flags = ["--dataset", str(tmp_path / "a.jsonl"), "--splits", "train", "--tokenizer", "toy"]
    assert text([*flags, "--out_root", str(tmp_path / "out"), "--on_bad_example", "drop"]) == 0
    assert manifest_of(tmp_path / "out" / "train")["dropped"] == {"bad rows": 1}


def test_texts_are_made_of_other_columns_where_that_is_asked_for(tmp_path, toy):
    write_jsonl(tmp_path / "a.jsonl", [{"content": "abc", "lang": "en"}])
    flags = ["--dataset", str(tmp_path / "a.jsonl"), "--splits", "train", "--tokenizer", "toy"]
    assert text([*flags, "--preprocessor", "{text: content}", "--out_root", str(tmp_path / "out")]) == 0
    manifest = manifest_of(tmp_path / "out" / "train")
    assert (manifest["form"], manifest["ignored_columns"]) == ("text", {"lang": 1})


def test_a_missing_split_is_an_error_before_any_is_written(tmp_path, toy, capsys):
    write_jsonl(tmp_path / "data" / "train.jsonl", questions(5))
    flags = ["--dataset", str(tmp_path / "data"), "--skip-preprocessing", "--tokenizer", "toy"]
    assert finetuning([*flags, "--out_root", str(tmp_path / "out")]) == 2
    assert "split is 'validation', but no file" in capsys.readouterr().err.replace("--splits is", "split is")
    assert not (tmp_path / "out").exists()


def test_text_needs_one_source(tmp_path, capsys, toy):
    assert text(["--out_root", str(tmp_path / "out"), "--tokenizer", "toy"]) == 2
    assert "exactly one of --path, --input_folder and --dataset is required" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.subprocess
def test_the_script_converts(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", questions(20))
    tokenizer = json.dumps({"vocab_file": str(ROOT / "quickstart" / "vocab.tiktoken")})
    flags = ["--dataset", "a.jsonl", "--splits", "train", "--skip-preprocessing", "--out_root", "out"]
    flags += ["--tokenizer", "tiktoken", "--tokenizer_kwargs", tokenizer]
    command = [sys.executable, str(ROOT / "scripts" / "convert_finetuning_dataset.py"), *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Prepared" in done.stdout
    assert manifest_of(tmp_path / "out" / "train")["examples_kept"] == 20
