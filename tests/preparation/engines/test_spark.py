"""Preparation with Spark. All tests use one session."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from data.base.errors import ConfigError, DataError
from data.preparation.engines import executor, java
from data.preparation.engines.choice import Engine, EngineError
from data.preparation.engines.run import check
from data.preparation.engines.spark_session import spark_context
from data.preparation.prepare import prepare_into
from tests.helpers.missing import skip_or_fail
from tests.helpers.prepared import TOY, contents, manifest_of
from tests.helpers.toy_tokenizer import dataset_config, questions, write_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]

SPARK = Engine(name="spark")


@pytest.fixture(scope="module")
def session():
    try:
        java.check_java()
    except EngineError as error:
        skip_or_fail(str(error))
    with spark_context("local[2]") as context:
        yield context


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config for a file of about 25 slices, each with at least one shard."""
    monkeypatch.setattr("data.preparation.parts.plan.SLICE_BYTES", 2000)
    monkeypatch.setattr("data.preparation.parts.plan.ROWS_PER_SLICE", 1)
    write_jsonl(tmp_path / "train.jsonl", questions(1200))
    return dataset_config(tmp_path, prepare_workers=1)


def test_all_engines_write_the_same_bytes(tmp_path, config, session):
    for index in (2, 0, 1):
        prepare_into(tmp_path / "parts", config, TOY, engine=Engine(share=(index, 3)))
    folders = [
        prepare_into(tmp_path / "spark", config, TOY, engine=SPARK),
        prepare_into(tmp_path / "one", config, TOY),
        prepare_into(tmp_path / "two", replace(config, prepare_workers=2), TOY),
        prepare_into(tmp_path / "parts", config, TOY, engine=Engine(merge_only=True)),
    ]
    assert len({pickle.dumps(sorted(contents(folder).items())) for folder in folders}) == 1
    assert len(list(folders[0].glob("shard.*.mds"))) >= 20
