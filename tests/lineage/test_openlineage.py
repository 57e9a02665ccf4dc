"""lineage.json is a valid OpenLineage event, according to the classes of the package openlineage-python."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openlineage.client import facet_v2
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.generated import base
from openlineage.client.serde import Serde

from data.base.errors import DataError
from data.loading.rows import Rows
from data.mds.row import COLUMNS, decoder
from tests.helpers.documented_folder import write_documented
from train.lineage.openlineage import LINEAGE, RunLineage, lineage_written, named, run_event
from train.supervision.exit_codes import ExitCode, RunStopped

SECRET = "hf_" + "Ab12" * 8
HUB = [{"dataset": "owner/name", "revision": "abc", "path": "a.jsonl", "bytes": 5, "license": "cc-by-4.0"}]
FACETS: dict[str, Any] = {
    each._get_schema(): each
    for module in [base, *(found for _, found in inspect.getmembers(facet_v2, inspect.ismodule))]
    for _, each in inspect.getmembers(module, inspect.isclass)
    if issubclass(each, base.BaseFacet)
}
"""The classes of facets, by the URL of their schema."""


def facet(values: Mapping[str, Any]) -> Any:
    """An object of the facet's class. Its constructor accepts only the properties of the schema."""
    given = {key: value for key, value in values.items() if not key.startswith("_")}
    made = FACETS[values["_schemaURL"]]
    if made.__module__ == base.__name__:
        return made(producer=values["_producer"]).with_additional_properties(**given)
    if "fields" in given:
        given["fields"] = [facet_v2.schema_dataset.SchemaDatasetFacetFields(**each) for each in given["fields"]]
    if "columnMetrics" in given:
        metrics = facet_v2.data_quality_metrics_input_dataset.ColumnMetrics
        given["columnMetrics"] = {name: metrics(**each) for name, each in given["columnMetrics"].items()}
    return made(producer=values["_producer"], **given)


def facets(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facet(each) for name, each in values.items()}


def dataset(made: type, values: Mapping[str, Any]) -> Any:
    more = {"inputFacets": facets(values["inputFacets"])} if "inputFacets" in values else {}
    return made(values["namespace"], values["name"], facets=facets(values["facets"]), **more)


def parse(values: Mapping[str, Any]) -> RunEvent:
    return RunEvent(
        eventType=RunState(values["eventType"]),
        eventTime=values["eventTime"],
        producer=values["producer"],
        run=Run(values["run"]["runId"], facets(values["run"]["facets"])),
        job=Job(values["job"]["namespace"], values["job"]["name"], facets(values["job"]["facets"])),
        inputs=[dataset(InputDataset, each) for each in values["inputs"]],
        outputs=[dataset(OutputDataset, each) for each in values["outputs"]],
    )


def full(value: Any) -> Any:
    """The value without empty lists and mappings, which the classes add to facets."""
    if isinstance(value, Mapping):
        return {key: full(each) for key, each in value.items() if each not in ({}, [], None)}
    return [full(each) for each in value] if isinstance(value, list) else value


def assert_valid(event: Mapping[str, Any]) -> None:
    assert full(json.loads(Serde.to_json(parse(event)))) == full(event)


@pytest.fixture
def run(tmp_path: Path) -> RunLineage:
    streams = {}
    for name, inputs in {"hub": HUB, "local": None}.items():
        documented = write_documented(tmp_path / name, 10, n_files=1, **({"inputs": inputs} if inputs else {}))
        streams[name] = Rows(
            folder=documented.folder,
            fingerprint=name,
            max_seq_len=2048,
            n_rows=10,
            tokens=1000,
            trained_tokens=None,
            vocab_size=10,
            mds=documented.mds,
            decode=decoder(tuple(COLUMNS), 0),
        )
    return RunLineage(
        run_id="6a7b1d5e-0d0f-4a5b-8a52-1d5b2f8d3c11",
        run_name="mine",
        folder=tmp_path,
        save_folder="s3://bucket/runs/mine",
        loaders={"train_loader": streams},
        first_batch=0,
        max_batches=100,
    )


@pytest.mark.parametrize(("kind", "message"), [("START", None), ("COMPLETE", None), ("FAIL", "bad"), ("ABORT", "x")])
def test_each_event_is_valid(run: RunLineage, kind: str, message: str | None) -> None:
    event = run_event(run, kind, message)
    assert_valid(event)
    assert event["eventType"] == kind
    assert ("errorMessage" in event["run"]["facets"]) == (message is not None)


def test_an_invalid_event_is_found() -> None:
    with pytest.raises(TypeError, match="rows"):
        facet(
            {
                "_producer": "p",
                "_schemaURL": facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet._get_schema(),
                "rows": 1,
            }
        )


def test_data_sets_have_schema_version_license_and_sizes(run: RunLineage, tmp_path: Path) -> None:
    event = run_event(run, "START")
    hub, local = event["inputs"]
    assert (hub["namespace"], hub["name"]) == ("https://huggingface.co", "datasets/owner/name")
    assert hub["facets"]["dropless_license"]["license"] == "cc-by-4.0"
    assert hub["facets"]["version"]["datasetVersion"] == "hub"
    assert (local["namespace"], local["name"]) == ("file", f"{tmp_path}/local/file0.jsonl")
    assert "dropless_license" not in local["facets"]
    assert [field["name"] for field in local["facets"]["schema"]["fields"]] == sorted(COLUMNS)
    assert local["inputFacets"]["inputStatistics"]["rowCount"] == 10
    assert local["inputFacets"]["dataQualityMetrics"]["columnMetrics"] == {"tokens": {"count": 1000}}
    (output,) = event["outputs"]
    assert (output["namespace"], output["name"]) == ("s3://bucket", "runs/mine")


def test_secrets_are_not_written(run: RunLineage) -> None:
    secret = replace(run, save_folder="s3://AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI@bucket/x", run_name=f"run-{SECRET}")
    text = json.dumps(run_event(secret, "FAIL", f"token {SECRET} was refused"))
    assert SECRET not in text
    assert "wJalrXUtnFEMI" not in text
    assert named("s3://bucket/a/b/") == {"namespace": "s3://bucket", "name": "a/b"}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (None, "COMPLETE"),
        (DataError("no space left"), "FAIL"),
        (RunStopped(ExitCode.UNSTABLE, "a spike"), "FAIL"),
        (RunStopped(ExitCode.RESUMABLE, "a signal"), "ABORT"),
        (KeyboardInterrupt(), "ABORT"),
    ],
)
def test_the_file_has_the_outcome(run: RunLineage, error: BaseException | None, kind: str) -> None:
    def written() -> dict[str, Any]:
        return json.loads((run.folder / LINEAGE).read_text())

    raised = None
    try:
        with lineage_written(run):
            assert written()["eventType"] == "START"
            if error is not None:
                raise error
    except BaseException as caught:
        raised = caught
    assert raised is error
    assert written()["eventType"] == kind
    assert not [*run.folder.glob(".part-*")]


def test_an_error_at_the_end_does_not_hide_why_the_run_ends(
    run: RunLineage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError, match="the reason"), lineage_written(run):  # noqa: PT012
        monkeypatch.setattr(
            Path, "replace", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        raise DataError("the reason")


def test_a_run_without_a_save_folder_writes_nothing() -> None:
    with lineage_written(None):
        pass
