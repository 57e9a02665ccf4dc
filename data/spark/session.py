"""The Spark session: an active session, or a new session that is stopped at the end."""

import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from data.base.errors import EngineError, setting
from data.spark.executors import ROOT
from data.spark.java import check_java

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

ATTEMPTS = 4
"""Number of attempts for each task on a local master, as on a cluster. Without this number, Spark does not repeat tasks
on a local master."""
_OF_CLUSTER = {"spark.ui.showConsoleProgress": "false", "spark.log.level": "ERROR"}
"""Spark's configuration for a new session on a cluster."""
_LOG = Path(__file__).parent / "assets" / "log4j2.properties"
_OF_LOCAL = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    # By default, failed attempts are logged to the console with Java's stack traces.
    "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile=file:{_LOG}",
    # The Java process only starts tasks, so its code is compiled without optimizations that take seconds.
    "spark.driver.defaultJavaOptions": "-XX:TieredStopAtLevel=1",
    "spark.executorEnv.PYTHONPATH": str(ROOT),
    "spark.python.daemon.module": "data.spark.daemon",
}
"""Spark's configuration for a new session on a local master."""
_LOCAL = re.compile(r"local(?:\[([^],]+)(?:,\s*(\d+))?\])?")


def check_installed() -> None:
    """Raises EngineError if PySpark or Java is missing or too old."""
    if find_spec("pyspark") is None:
        raise EngineError("Spark requires PySpark 4: pip install -e '.[spark]'")
    import pyspark

    if int(pyspark.__version__.partition(".")[0]) < 4:
        raise EngineError(
            f"Spark requires PySpark 4, but PySpark {pyspark.__version__} is installed: pip install -e '.[spark]'"
        )
    if pyspark.SparkContext._active_spark_context is None:
        check_java()


@contextmanager
def spark_session(master: str | None, conf: Mapping[str, str] | None = None) -> Iterator["SparkSession"]:
    """The active session, which is not stopped; or else a new session, which is stopped at the end of the block.

    `conf` are settings of a new session, in addition to those of this module. Raises EngineError if there is no session
    and none can be started.
    """
    check_installed()
    from pyspark.sql import SparkSession
    from pyspark.sql.utils import is_remote

    if is_remote():
        raise EngineError(
            "the session is a Spark Connect session, which has no executors that run Python functions of this engine: "
            "use a classic session (on Databricks, a cluster with dedicated access mode)"
        )
    session = SparkSession.getActiveSession()
    if session is not None:
        _check_master(str(session.sparkContext.master), master)
        yield session
        return
    session = _start(master, conf or {})
    try:
        yield session
    finally:
        with suppress(Exception):  # Java has ended, which the block has reported
            session.stop()


def max_attempts(context: "SparkContext") -> int:
    """Number of times that Spark tries a task before it ends the job."""
    local = _LOCAL.fullmatch(str(context.master))
    if local is not None:
        return int(local[2] or 1)
    return int(context.getConf().get("spark.task.maxFailures") or 4)


def _check_master(active: str, wanted: str | None) -> None:
    if wanted is not None and active not in (wanted, _with_attempts(wanted)):
        raise EngineError(
            f"{setting('master')} is {wanted!r}, but a session with the master {active!r} is active: remove "
            f"{setting('master')} to use this session, or stop the session"
        )


def _with_attempts(master: str) -> str:
    local = _LOCAL.fullmatch(master)
    return f"local[{local[1] or 1},{ATTEMPTS}]" if local is not None and local[2] is None else master


def _start(master: str | None, conf: Mapping[str, str]) -> "SparkSession":
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("dropless")
    is_local = master is not None and master.startswith("local")
    if is_local:
        # Tasks run on this machine, with the packages of this process.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    for key, value in {**(_OF_LOCAL if is_local else _OF_CLUSTER), **conf}.items():
        builder = builder.config(key, value)
    if master is not None:
        builder = builder.master(_with_attempts(master))
    # Py4J logs a traceback if a call to Java is interrupted, or if Java has ended. Both are reported elsewhere.
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(_not_from_py4j)
    handler = signal.getsignal(signal.SIGINT)
    try:
        # About the version of pandas, which is not used here.
        warnings.filterwarnings("ignore", category=FutureWarning, module="pyspark")
        return builder.getOrCreate()
    except Exception as error:  # PySpark and Py4J raise many types of errors
        at = f"with {setting('master')} {master!r} " if master is not None else ""
        raise EngineError(
            f"Spark cannot be started {at}({java_message(error)}): check {setting('master')}, Java and Spark's "
            "configuration"
        ) from None
    finally:
        if handler is not None and signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)  # PySpark's own handler does not work after the session has ended


def _not_from_py4j(record: logging.LogRecord) -> bool:
    """Whether the record, which was passed to the root logger, comes from another package than Py4J."""
    return Path(record.pathname).parent.name != "py4j"


def java_message(error: Exception) -> str:
    """The first line of the message, without Java's stack trace."""
    java = getattr(error, "java_exception", None)
    text = str(java.getMessage() or java.toString()) if java is not None else str(error)
    return f"{type(error).__name__ if java is None else ''}: {(text.splitlines() or [''])[0]}".removeprefix(": ")
