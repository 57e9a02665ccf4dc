"""Fixtures of the tests of curation."""

import pytest

from data.base.errors import EngineError
from data.spark.session import check_installed, spark_session
from tests.helpers.missing import skip_or_fail


@pytest.fixture(scope="module")
def spark():
    """A Spark session with few partitions. Tests that use it are marked `slow` and `subprocess`."""
    try:
        check_installed()
    except EngineError as error:
        skip_or_fail(str(error))
    conf = {"spark.sql.shuffle.partitions": "3", "spark.python.daemon.module": "data.curation.daemon"}
    with spark_session("local[2]", conf) as session:
        yield session
