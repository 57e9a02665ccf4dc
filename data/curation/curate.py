"""Curate: read the sources, run the steps, and write the documents and the page."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from data.base.errors import ConfigError, Problems, plain_os_errors
from data.base.locks import exclusive_unless
from data.base.versions import installed_versions
from data.base.workers import all_cores
from data.config.dataset import DatasetConfig
from data.curation.base.report import CurationReport, StepReport
from data.curation.base.tasks import errors_of_tasks
from data.curation.chain import (
    DOCUMENTS,
    STEPS,
    Link,
    fingerprint_of,
    links,
    remove_documents,
    remove_others,
)
from data.curation.config import CurationConfig, NamedStep
from data.curation.page.page import write_page
from data.curation.page.warnings import warning_lines
from data.curation.probe import probe
from data.curation.reading import OpenSource, TokenCounter, made_from, open_sources, work_of
from data.curation.run import Runner, check_remaining, log_step
from data.curation.writing import write_documents
from data.preparation.engines.choice import Engine
from data.preparation.prepare import prepare_into
from data.spark.executors import PACKAGES
from data.spark.session import check_installed, spark_session
from data.tokenization.build import build_tokenizer
from data.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PAGE = "curation.html"
RECORD = "curation.json"
ROWS = "rows"
_CONF = {
    # Documents may be large, so batches are limited by their size.
    "spark.sql.execution.arrow.maxRecordsPerBatch": "2000",
    "spark.sql.execution.arrow.maxBytesPerBatch": str(64 << 20),
    "spark.sql.parquet.compression.codec": "zstd",
}
_LOCAL_MEMORY = 0.25
"""Share of this machine's memory for the Java process of a local session."""


def check(
    config: CurationConfig, steps: list[NamedStep], *, rehash: bool = False
) -> tuple[Tokenizer, list[OpenSource]]:
    """Open the tokenizer and the sources, and check what the steps need. Raises ConfigError with all problems. Spark is
    not started."""
    problems = Problems()
    tokenizer, sources = None, []
    with problems.collect():
        check_installed()
    with problems.collect():
        tokenizer = build_tokenizer(config.tokenizer)
    with problems.collect():
        sources = open_sources(config, rehash=rehash)
    for named in steps:
        with problems.collect(), named.errors_placed():
            named.step.check()
    with problems.collect():
        _check_output(config, sources)
    problems.raise_if_any()
    assert tokenizer is not None
    return tokenizer, sources


def curate(
    config: CurationConfig, steps: list[NamedStep], *, master: str | None = None, rehash: bool = False
) -> CurationReport:
    """Run all steps that are not complete, write the documents and the page, and return the report.

    `master` is the URL of Spark's master; None uses the active session, or else all cores of this machine. Raises
    ConfigError or DataError with all problems that can be found before Spark starts, DataError for a document for which
    a step raises an exception, and ConfigError for a step that removes all documents.
    """
    tokenizer, sources = check(config, steps, rehash=rehash)
    output = Path(config.output)
    with plain_os_errors(f"output is {config.output!r}, but it", "choose another folder"):
        output.mkdir(parents=True, exist_ok=True)
        with exclusive_unless(output / ".lock", lambda: True) as held:
            if not held:
                raise ConfigError(f"is {config.output!r}, which another curation is writing: wait for it", key="output")
            return _Curation(config, steps, tokenizer, sources, master).run()


class _Curation:
    """One call of `curate`, whose inputs are open."""

    def __init__(
        self,
        config: CurationConfig,
        steps: list[NamedStep],
        tokenizer: Tokenizer,
        sources: list[OpenSource],
        master: str | None,
    ) -> None:
        self.config, self.tokenizer, self.sources = config, tokenizer, sources
        self.master = master
        self.output = Path(config.output)
        self.chain = links(self.output, made_from(sources, config, tokenizer), steps, config.seed)

    def run(self) -> CurationReport:
        if self._is_written() and all(link.report() is not None for link in self.chain) and self.config.rows is None:
            reports = [self._logged(link, None) for link in self.chain]
            return self._finish(reports)
        with spark_session(self.master or _local_master(), _conf(self.master)) as session:
            _check_executors(session, self.sources, self.output)
            reports = self._run_steps(session)
            if not self._is_written():
                self._write_documents(session, reports[-1].total().after.documents)
            if self.config.rows is not None:
                self._prepare_rows()
        return self._finish(reports)

    def _run_steps(self, session: "SparkSession") -> list[StepReport]:
        runner = Runner(
            spark=session,
            chain=self.chain,
            sources=self.sources,
            work=lambda: work_of(self.sources, self.tokenizer),
            count_tokens=TokenCounter(self.tokenizer),
            drops_invalid=self.config.on_bad_example == "drop",
            seed=self.config.seed,
        )
        reports: list[StepReport] = []
        for number, link in enumerate(self.chain):
            # A complete step without documents is repeated if a later step needs them.
            is_needed = any(later.report() is None for later in self.chain[number + 1 :]) or not self._is_written()
            usable = link.report() is not None and (link.has_documents() or not is_needed)
            reports.append(self._logged(link, None if usable else runner.run(link, reports[-1] if reports else None)))
        return reports

    def _logged(self, link: Link, new: StepReport | None) -> StepReport:
        report = new or link.report()
        assert report is not None
        log_step(report, warning_lines(report), is_new=new is not None)
        check_remaining(link, report)
        return report

    def _is_written(self) -> bool:
        """Whether the documents of this chain were written."""
        try:
            record = json.loads((self.output / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return record.get("fingerprint") == self.chain[-1].fingerprint and (self.output / DOCUMENTS).is_dir()

    def _write_documents(self, session: "SparkSession", n_documents: int) -> None:
        (self.output / RECORD).unlink(missing_ok=True)  # of documents that are now replaced
        with errors_of_tasks("writing the documents"):
            n_written = write_documents(self.chain[-1].kept(session), self.output / DOCUMENTS)
        assert n_written == n_documents, f"wrote {n_written} of {n_documents} documents"

    def _prepare_rows(self) -> None:
        rows = self.config.rows
        assert rows is not None
        marker = self.output / f".{ROWS}"
        fingerprint = fingerprint_of({"documents": self.chain[-1].fingerprint, **vars(rows)})
        if not marker.exists() or marker.read_text(encoding="utf-8") != fingerprint:
            shutil.rmtree(self.output / ROWS, ignore_errors=True)  # of other documents or settings
            marker.write_text(fingerprint, encoding="utf-8")
        dataset = DatasetConfig(
            hf_name=str(self.output / DOCUMENTS),
            preprocessing_fn={"text": "text"},
            max_seq_len=rows.max_seq_len,
            packing=rows.packing,
            cache_dir=self.config.cache_dir,
        )
        engine = Engine(name="spark")
        prepare_into(self.output / ROWS, dataset, self.tokenizer, compression=rows.compression, engine=engine)

    def _finish(self, reports: list[StepReport]) -> CurationReport:
        report = CurationReport(
            name=self.config.name,
            config=asdict(self.config),  # pyright: ignore[reportArgumentType]
            steps=reports,
            output=str(self.output / DOCUMENTS),
            versions=installed_versions(("pyspark", *PACKAGES)),
        )
        record = {"fingerprint": self.chain[-1].fingerprint, **asdict(report)}
        part = self.output / f".{RECORD}"
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.replace(self.output / RECORD)
        write_page(report, self.output / PAGE)
        remove_others(self.chain)
        if not self.config.keep_steps:
            remove_documents(self.chain)
        return report


def _check_output(config: CurationConfig, sources: list[OpenSource]) -> None:
    output = Path(config.output)
    if not output.exists():
        return
    if not output.is_dir():
        raise ConfigError(f"is {config.output!r}, which is not a folder: choose another path", key="output")
    known = (output / RECORD).is_file() or (output / STEPS).is_dir()
    others = [path.name for path in output.iterdir() if path.name != ".lock"]
    if others and not known:
        raise ConfigError(
            f"is {config.output!r}, which contains files of something else ({others[0]}): choose another folder",
            key="output",
        )
    inside = output.resolve()
    for each in sources:
        for file in each.files:
            if Path(file).resolve().is_relative_to(inside):
                raise ConfigError(f"is {config.output!r}, which contains {file} of sources.{each.name}", key="output")


def _conf(master: str | None) -> dict[str, str]:
    """Settings of a new session."""
    if master is not None and not master.startswith("local"):
        return _CONF
    import psutil

    memory = max(int(psutil.virtual_memory().total * _LOCAL_MEMORY) >> 20, 1024)
    return {
        **_CONF,
        "spark.driver.memory": f"{memory}m",
        # Unlike preparation, curation moves documents through Java, so its code should be optimized.
        "spark.driver.defaultJavaOptions": "",
        "spark.python.daemon.module": "data.curation.daemon",
    }


def _local_master() -> str | None:
    """The master of a new session: all cores of this machine. None if a session is active."""
    from pyspark.sql import SparkSession

    return None if SparkSession.getActiveSession() is not None else f"local[{all_cores()}]"


def _check_executors(session: "SparkSession", sources: list[OpenSource], output: Path) -> None:
    """Raises EngineError if executors on other machines do not see the input, or do not share the output."""
    if str(session.sparkContext.master).startswith("local"):
        return
    with errors_of_tasks("the check of its executors"):
        probe(session, [each.source for each in sources], output)
