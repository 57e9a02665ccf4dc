"""The variant of scripts/bench/bench_data.py that runs on Spark: Streaming's `dataframe_to_mds`, with tiktoken."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.bench.data_variants import COLUMNS

if TYPE_CHECKING:
    import pandas

    from data.tokenization.tiktoken_tokenizer import TiktokenTokenizer

OLDEST_JAVA = 17


def why_not() -> str | None:
    """The reason why Spark cannot run here, or None."""
    try:
        import pyspark  # noqa: F401 - only to find out whether it is installed
    except ImportError:
        return "no pyspark"
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if java is None:
        return "no Java"
    shown = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', shown)
    if found is None or int(found[1]) < OLDEST_JAVA:
        return f"Java is older than {OLDEST_JAVA}"
    return None


class SparkVariant:
    """Tokenizes and writes a file with `dataframe_to_mds`. The Spark session starts when the object is created."""

    def __init__(self, file: Path, folder: Path, tokenizer: "TiktokenTokenizer", max_seq_len: int) -> None:
        from pyspark.sql import SparkSession

        os.environ |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
        builder = SparkSession.builder.master("local[2]").config("spark.local.dir", str(folder / "spark"))
        builder = builder.config("spark.ui.enabled", "false").config("spark.ui.showConsoleProgress", "false")
        self._spark = builder.getOrCreate()
        self._spark.sparkContext.setLogLevel("ERROR")
        self._file = file
        self._rows = _rows_of_batches(tokenizer, max_seq_len)

    def warm_up(self) -> None:
        """Start two Python workers and import Streaming there. Spark ends workers that are idle for a minute."""

        def imported(batches: Iterable[Any]) -> Iterator[Any]:
            import streaming  # noqa: F401

            yield from batches

        self._spark.range(0, 2, 1, 2).mapInPandas(imported, "id long").collect()

    def __call__(self, out: Path) -> None:
        from streaming.base.converters import dataframe_to_mds

        mds = {"out": str(out), "columns": COLUMNS, "hashes": ["xxh64"], "compression": None}
        texts = self._spark.read.schema("text string").json(str(self._file))
        dataframe_to_mds(texts, mds_kwargs=mds, udf_iterable=self._rows)

    def stop(self) -> None:
        self._spark.stop()


def _rows_of_batches(
    tokenizer: "TiktokenTokenizer", max_seq_len: int
) -> Callable[["pandas.DataFrame"], Iterator[dict[str, Any]]]:
    encoding, eos = tokenizer._encoding, tokenizer.eos_token_id

    def rows(batch: "pandas.DataFrame") -> Iterator[dict[str, Any]]:
        """Runs in a worker of Spark. The function is sent to the worker together with all objects that it uses, because
        the worker cannot import this module."""
        import numpy as np

        ids = [part for text in batch["text"] for part in (encoding.encode_ordinary(text), [eos])]
        tokens = np.concatenate(ids).astype(np.int32)
        for start in range(0, len(tokens) - max_seq_len + 1, max_seq_len):
            yield {"tokens": tokens[start : start + max_seq_len]}

    return rows
