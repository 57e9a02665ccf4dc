"""Requirements of Spark that are checked before anything is written."""

from types import SimpleNamespace

import pytest

from data.base.errors import EngineError
from data.preparation.engines.choice import Engine
from data.preparation.engines.run import check
from data.preparation.prepare import prepare_into
from data.spark.java import check_java
from tests.helpers.prepared import TOY
from tests.helpers.toy_tokenizer import dataset_config, questions, write_jsonl

SPARK = Engine(name="spark")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that makes a program that prints a version the only Java."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def write(version: str) -> None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "java").write_text(f"#!/bin/sh\necho '{version}' >&2\n")
        (tmp_path / "bin" / "java").chmod(0o755)

    return write


@pytest.mark.subprocess
@pytest.mark.parametrize("version", ['openjdk version "17.0.15" 2025-04-15', 'java version "21" 2023-09-19 LTS'])
def test_java_17_or_newer_is_accepted(install, version):
    install(version)
    check_java()


@pytest.mark.subprocess
@pytest.mark.parametrize(("version", "number"), [('java version "1.8.0_392"', 8), ('openjdk version "11.0.2"', 11)])
def test_an_old_java_is_refused(install, version, number):
    install(version)
    with pytest.raises(EngineError, match=rf"java is Java {number}, but Spark requires Java 17 or newer"):
        check_java()


def test_without_java_nothing_is_written(install, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", questions(3))
    with pytest.raises(EngineError, match="requires Java, but there is no java in PATH, and JAVA_HOME is not set"):
        prepare_into(tmp_path / "out", dataset_config(tmp_path), TOY, engine=SPARK)
    assert not (tmp_path / "out").exists()


def test_java_home_without_java_is_named(install, tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(EngineError, match=rf"JAVA_HOME is '{tmp_path}', but {tmp_path}/bin/java does not exist"):
        check_java()


def test_without_pyspark_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("data.spark.session.find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"requires PySpark 4: pip install -e '\.\[spark\]'"):
        check(SPARK, SimpleNamespace(is_local_only=False))


def test_a_source_of_the_datasets_library_is_refused(monkeypatch):
    monkeypatch.setattr("data.preparation.engines.run.check_installed", lambda: None)
    with pytest.raises(EngineError, match=r"only the `datasets` library can read this dataset.*engine: local"):
        check(SPARK, SimpleNamespace(is_local_only=True))
