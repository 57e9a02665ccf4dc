"""The steps of a curation as a chain of folders. A folder is complete when it contains the step's report, and its name
contains a fingerprint of the step and of all earlier steps, so a later curation continues from the first changed
step."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
from pydantic import TypeAdapter, ValidationError

from data.curation.base.document import ID_BITS
from data.curation.base.report import StepReport
from data.curation.base.step import ScoredStep
from data.curation.config import NamedStep
from data.mds.writer import write_text

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

STEPS = "steps"
DOCUMENTS = "documents"
REPORT = "step.json"
TEMPORARY = "temporary"
READ = "read"
"""The name of step 0."""
FORMAT_VERSION = 1
"""Part of all fingerprints. Increase it when the columns of the steps' documents change."""
_REPORT = TypeAdapter(StepReport)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, kw_only=True)
class Link:
    """A step in the chain. `named` is None for step 0, which reads the sources."""

    number: int
    named: NamedStep | None
    made_from: Mapping[str, Any]
    fingerprint: str
    scores_fingerprint: str
    folder: Path

    @property
    def name(self) -> str:
        return READ if self.named is None else self.named.name

    @property
    def documents(self) -> Path:
        """The folder of the step's result. Removed documents are in its subfolder `kept=false`."""
        return self.folder / DOCUMENTS

    def report(self) -> StepReport | None:
        """The report of the complete step; None if the step is not complete."""
        return read_report(self.folder)

    def result(self, spark: "SparkSession") -> "DataFrame":
        """Kept and removed documents, with their verdicts."""
        return spark.read.parquet(str(self.documents))

    def kept(self, spark: "SparkSession") -> "DataFrame":
        return spark.read.parquet(str(self.documents / "kept=true"))

    def commit(self, report: StepReport) -> None:
        shutil.rmtree(self.folder / TEMPORARY, ignore_errors=True)
        part = self.folder / f".{REPORT}"
        write_text(part, _REPORT.dump_json(report, indent=1).decode())
        part.replace(self.folder / REPORT)

    def has_documents(self) -> bool:
        return self.documents.is_dir()


def links(output: Path, read_from: Mapping[str, Any], steps: list[NamedStep], seed: int) -> list[Link]:
    """The chain. read_from: everything that determines the documents of step 0. ID_BITS is part of the fingerprint
    because ids are stored."""
    first = {"format": FORMAT_VERSION, "id_bits": ID_BITS, **read_from}
    chain = [_link(output, 0, None, first, "")]
    for number, named in enumerate(steps, start=1):
        before: dict[str, Any] = {"before": chain[-1].fingerprint, "name": named.name, "version": named.step.VERSION}
        if named.step.USES_SEED:
            before["seed"] = seed
        of_scores = ""
        if isinstance(named.step, ScoredStep):
            of_scores = fingerprint_of({**before, "scores": named.step.scores_made_from()})
        chain.append(_link(output, number, named, {**before, **named.step.made_from()}, of_scores))
    return chain


def _link(output: Path, number: int, named: NamedStep | None, made_from: Mapping[str, Any], scores: str) -> Link:
    fingerprint = fingerprint_of(made_from)
    name = _NOT_IN_NAMES.sub("-", READ if named is None else named.name)
    return Link(
        number=number,
        named=named,
        made_from=made_from,
        fingerprint=fingerprint,
        scores_fingerprint=scores,
        folder=output / STEPS / f"{number:02d}-{name}-{fingerprint[:12]}",
    )


def fingerprint_of(values: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def read_report(folder: Path) -> StepReport | None:
    try:
        return _REPORT.validate_json((folder / REPORT).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):  # of an earlier version
        return None


def scored_before(link: Link) -> Path | None:
    """The folder of a complete step with the same scores, but other thresholds."""
    if not link.scores_fingerprint:
        return None
    for folder, report in finished(link.folder.parent):
        if report.scores_fingerprint == link.scores_fingerprint and (folder / DOCUMENTS).is_dir():
            return folder
    return None


def finished(steps: Path) -> Iterator[tuple[Path, StepReport]]:
    """The folders of complete steps, and their reports."""
    for folder in sorted(steps.iterdir()) if steps.is_dir() else ():
        if (report := read_report(folder)) is not None:
            yield folder, report


def remove_others(chain: list[Link]) -> None:
    """Remove the folders of steps that do not belong to the chain."""
    wanted = {link.folder.name for link in chain}
    for folder in chain[0].folder.parent.iterdir():
        if folder.name not in wanted and folder.is_dir():
            shutil.rmtree(folder)


def remove_documents(chain: list[Link]) -> None:
    """Remove the documents of all steps, but not their reports."""
    for link in chain:
        shutil.rmtree(link.documents, ignore_errors=True)
