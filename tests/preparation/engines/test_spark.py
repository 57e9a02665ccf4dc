"""Preparation with Spark. All tests use one session, because its start takes seconds."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data.base.errors import DataError, EngineError
from data.preparation.engines.choice import Engine
from data.preparation.parts.plan import done
from data.preparation.prepare import prepare_into
from data.spark.session import check_installed, spark_session
from tests.helpers.missing import skip_or_fail
from tests.helpers.prepared import TOY, contents
from tests.helpers.stores import serve
from tests.helpers.toy_tokenizer import dataset_config, questions, write_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]

SPARK = Engine(name="spark")
FUNCTIONS = '''
import os, signal, threading
import sys
from pathlib import Path

LOCK = threading.Lock()

def once(name):
    """Return whether this is the first call with this name."""
    try:
        (Path(__file__).parent / name).touch(exist_ok=False)
        return True
    except FileExistsError:
        return False

def fail_once(row):
    if row["prompt"].startswith("300?") and once("ended"):
        os._exit(3)
    if row["prompt"].startswith("600?") and once("killed"):
        os.kill(os.getppid(), signal.SIGKILL)
    return row

def end(row):
    if row["prompt"].startswith("600?"):
        os._exit(3)
    return row

def use_lock(row):
    with LOCK:
        return row
'''


@pytest.fixture(scope="module")
def server():
    with serve("s3") as server:
        yield server


@pytest.fixture(scope="module")
def session(server):
    """A session whose tasks use the server."""
    try:
        check_installed()
    except EngineError as error:
        skip_or_fail(str(error))
    # The Java process may have been started before the server, by another test.
    of_server = {f"spark.executorEnv.{name}": value for name, value in server.environment.items()}
    with spark_session("local[2]", of_server) as session:
        yield session.sparkContext


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config for a file of more than 20 slices, each with at least one shard."""
    monkeypatch.setattr("data.preparation.parts.plan.SLICE_BYTES", 1000)
    monkeypatch.setattr("data.preparation.parts.plan.ROWS_PER_SLICE", 1)
    write_jsonl(tmp_path / "train.jsonl", questions(1000))
    (tmp_path / "functions_for_spark.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "functions_for_spark", raising=False)
    return dataset_config(tmp_path, prepare_workers=1)


def test_all_engines_write_the_same_bytes_even_if_tasks_fail(tmp_path, config, session):
    config = replace(config, preprocessing_fn="functions_for_spark:fail_once")
    folders = [prepare_into(tmp_path / "spark", config, TOY, engine=SPARK)]
    assert (tmp_path / "ended").exists()
    assert (tmp_path / "killed").exists()
    for index in (2, 0, 1):
        prepare_into(tmp_path / "parts", config, TOY, engine=Engine(share=(index, 3)))
    folders += [
        prepare_into(tmp_path / "one", config, TOY),
        prepare_into(tmp_path / "two", replace(config, prepare_workers=2), TOY),
        prepare_into(tmp_path / "parts", config, TOY, engine=Engine(merge_only=True)),
    ]
    expected = contents(folders[1])
    assert [contents(folder) == expected for folder in folders] == [True] * 4
    assert len([name for name in expected if name.endswith(".mds")]) >= 20


def test_a_preparation_of_another_engine_is_resumed(tmp_path, config, session):
    prepare_into(tmp_path / "out", config, TOY, engine=Engine(share=(0, 2)))
    n_done = len(list(done(tmp_path / "out")))
    assert n_done > 10
    expected = contents(prepare_into(tmp_path / "local", config, TOY))
    assert contents(prepare_into(tmp_path / "out", config, TOY, engine=SPARK)) == expected


def test_all_bad_rows_are_reported_with_their_lines(tmp_path, config, session):
    write_jsonl(tmp_path / "train.jsonl", [*questions(100), {"prompt": "p"}, *questions(600), {"prompt": "p"}])
    with pytest.raises(DataError) as caught:
        prepare_into(tmp_path / "out", config, TOY, engine=SPARK)
    assert str(caught.value).startswith("2 rows cannot be used:")
    assert f"{tmp_path / 'train.jsonl'}:101: response is missing" in str(caught.value)
    assert f"(and 1 more row: {tmp_path / 'train.jsonl'}:702)" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_tasks_upload_their_parts_to_an_object_store(tmp_path, config, session, server):
    url = f"{server.url}/rows"
    engine = Engine(name="spark", remote=url)
    prepare_into(tmp_path / "driver", config, TOY, engine=engine, remote=url)
    expected = contents(prepare_into(tmp_path / "local", config, TOY))
    assert {name.removeprefix("rows/"): content for name, content in server.content().items()} == expected
    assert sorted(contents(tmp_path / "driver")) == ["index.json", "manifest.json"]
    assert server.written()[-1] == "rows/index.json"


def test_an_object_store_without_the_parts_of_bad_rows(tmp_path, config, session, server):
    write_jsonl(tmp_path / "train.jsonl", [*questions(600), {"prompt": "p"}])
    url = f"{server.url}/bad"
    with pytest.raises(DataError, match="1 row cannot be used"):
        prepare_into(tmp_path / "driver", config, TOY, engine=Engine(name="spark", remote=url), remote=url)
    assert [name for name in server.content() if name.startswith("bad/")] == []


def test_a_function_that_ends_its_process_is_named(tmp_path, config, session):
    config = replace(config, preprocessing_fn="functions_for_spark:end")
    with pytest.raises(DataError, match="'functions_for_spark:end', but this function ended its process: exit code 3"):
        prepare_into(tmp_path / "out", config, TOY, engine=SPARK)


def test_a_function_that_cannot_be_sent_is_named(tmp_path, config, session):
    config = replace(config, preprocessing_fn="functions_for_spark:use_lock")
    with pytest.raises(EngineError, match=r"cannot be sent to Spark's executors .*: create the objects"):
        prepare_into(tmp_path / "out", config, TOY, engine=SPARK)


def test_another_master_than_that_of_the_session_is_refused_and_parts_are_kept(tmp_path, config, session):
    prepare_into(tmp_path / "out", config, TOY, engine=Engine(share=(0, 2)))
    n_done = len(list(done(tmp_path / "out")))
    with pytest.raises(EngineError, match=r"master is 'local\[3\]', but a session with the master 'local\[2,4\]'"):
        prepare_into(tmp_path / "out", config, TOY, engine=Engine(name="spark", master="local[3]"))
    assert len(list(done(tmp_path / "out"))) == n_done


def test_nothing_is_left_in_the_working_directory(session):
    assert not [name for name in ("spark-warehouse", "metastore_db", "artifacts") if Path(name).exists()]
