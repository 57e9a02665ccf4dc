"""What an executor of Spark checks before it prepares slices. The functions of an executor run here without Spark."""

import pickle
from dataclasses import replace

import pytest

from data.base.errors import DataError, EngineError, settings_writer
from data.base.workers import WorkerEnded
from data.preparation.engines import executor
from data.preparation.engines.spark import _error_of
from data.preparation.parts.plan import plan
from data.preparation.prepare import _tokenizing
from data.sources.source import open_source
from tests.helpers.prepared import TOY
from tests.helpers.toy_tokenizer import dataset_config, questions, write_jsonl


@pytest.fixture
def payload(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", questions(30))
    config, folder = dataset_config(tmp_path, prepare_workers=1), tmp_path / "out"
    source = open_source(config)
    job = plan(folder, _tokenizing(folder, config, source, TOY), config, {"input": source.fingerprint}, None)
    return executor.payload_of(job, 1, settings_writer())


def prepare_slice(payload, *, is_last_attempt: bool):
    content = pickle.dumps(payload)
    return pickle.loads(executor.prepare_slice(content, 0, check_only=False, is_last_attempt=is_last_attempt))


def test_an_executor_like_the_driver_prepares_a_part(payload):
    assert prepare_slice(payload, is_last_attempt=False) == (0, None)
    assert (payload.job.folder / "unfinished" / "parts" / "00000" / "part.json").exists()


def test_other_packages_are_named(payload):
    versions = {**payload.versions, "numpy": "1.0", "other": "2.0"}
    _, error = prepare_slice(replace(payload, versions=versions), is_last_attempt=False)
    assert isinstance(error, EngineError)
    here = payload.versions["numpy"]
    assert f"other packages than the driver: numpy {here} (driver: 1.0), other is missing (driver: 2.0)" in str(error)


@pytest.mark.parametrize("how", ["missing", "changed"])
def test_an_executor_that_sees_another_input_is_named(payload, tmp_path, how):
    payload.job.recipe.source.fingerprint  # noqa: B018 - the hash is computed before the file changes
    file = tmp_path / "train.jsonl"
    if how == "missing":
        file.unlink()
    else:
        file.write_text("{}\n")
    with pytest.raises(
        EngineError, match=r"executor on \S+ does not see the input as the driver does \(.*train\.jsonl"
    ):
        executor.check_executor(payload)


def test_an_executor_that_does_not_see_the_folder_is_named(payload, tmp_path):
    other = replace(payload, job=replace(payload.job, folder=tmp_path / "elsewhere"))
    with pytest.raises(EngineError, match=r"does not see .*elsewhere/unfinished/plan\.json, which the driver"):
        executor.check_executor(other)
    assert not (tmp_path / "elsewhere").exists()


def test_an_executor_that_cannot_write_is_named(payload, tmp_path, monkeypatch):
    # A name that is too long stands for a folder without permission, because root may write anywhere.
    monkeypatch.setattr("uuid.uuid4", lambda: type("Name", (), {"hex": "x" * 300})())
    with pytest.raises(EngineError, match=rf"cannot write to {tmp_path}/out \(File name too long\): choose a folder"):
        executor.check_executor(payload)


def test_an_error_that_may_not_occur_again_is_raised_until_the_last_attempt(payload, monkeypatch):
    def end(*args, **kwargs):
        raise WorkerEnded("exit code 3", 3)

    monkeypatch.setattr(executor, "write_part", end)
    with pytest.raises(WorkerEnded):
        prepare_slice(payload, is_last_attempt=False)
    _, error = prepare_slice(payload, is_last_attempt=True)
    assert isinstance(error, WorkerEnded)
    assert error.status == 3


def test_an_error_of_the_user_is_not_tried_again(payload, monkeypatch):
    def refuse(*args, **kwargs):
        raise DataError("changed while it was being read")

    monkeypatch.setattr(executor, "write_part", refuse)
    _, error = prepare_slice(payload, is_last_attempt=False)
    assert str(error) == "changed while it was being read"


def test_an_error_that_cannot_be_pickled_keeps_its_text(payload, monkeypatch):
    def fail(*args, **kwargs):
        raise type("Local", (Exception,), {})("no space")

    monkeypatch.setattr(executor, "write_part", fail)
    _, error = prepare_slice(payload, is_last_attempt=True)
    assert str(error) == "Local: no space"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("RuntimeError: [PYTHON_VERSION_MISMATCH] Python in worker has different version: 3.9", "set PYSPARK_PYTHON"),
        ('java.io.IOException: Cannot run program "python3.11"', "set PYSPARK_PYTHON to an interpreter of Python 3"),
        ("Job aborted: Python worker exited unexpectedly (crashed)", "ended in each of 4 attempts"),
        (
            "SparkContext was shut down\n\tat org.apache",
            r"Spark has ended the job \(RuntimeError: .* down\): start again",
        ),
    ],
)
def test_errors_of_spark_have_one_line_and_a_fix(message, expected):
    error = _error_of(RuntimeError(message), 4)
    assert "\n" not in str(error)
    with pytest.raises(EngineError, match=expected):
        raise error


def test_the_end_of_java_is_reported():
    assert "its Java process has ended, perhaps because of low memory" in str(_error_of(ConnectionRefusedError(), 4))
