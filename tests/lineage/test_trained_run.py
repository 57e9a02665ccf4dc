"""A real run with a skipped step, a rollback, a kill and a resume with a changed stage: its documents are those that
the model saw."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from composer.core import Callback, State
from composer.loggers import Logger

from tests.helpers.faults import Fault, Kill, run_with
from tests.helpers.load_script import load_script
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_curriculum import STAGES, write_curriculum
from tests.lineage.test_openlineage import assert_valid
from train.lineage.opening import open_run
from train.lineage.openlineage import LINEAGE
from train.lineage.questions import rows_of_steps, seen

OVERRIDES = ["run_name=traced", "eval_loader=null", "model.n_layers=1", "save_interval=3ba", "on_nonfinite=skip"]
SPIKES = ["on_spike=rollback", "spikes={min_steps: 4, window: 8}"]


class Seen(Callback):
    """The stream and the tokens of each row of each batch."""

    def __init__(self) -> None:
        self.rows: dict[int, list[tuple[int, list[int]]]] = {}

    def batch_start(self, state: State, logger: Logger) -> None:
        batch, rows = state.batch, []
        for stream, ids, document_ids in zip(
            *(batch[key] for key in ("streams", "input_ids", "document_ids")), strict=True
        ):
            rows.append((int(stream), ids[document_ids >= 0].tolist()))
        self.rows[state.timestamp.batch.value] = rows


def both(path: str) -> dict[int, Any]:
    """Batch 4 is a spike (rollback to ep0-ba3), batch 6 is not finite, and the run is killed before batch 10."""
    faults, first, second = [Fault([4], loss=25.0), Fault([6], loss=math.nan)], Seen(), Seen()
    run_with(path, [*OVERRIDES, *SPIKES], *faults, first, Kill(10))
    config = yaml.safe_load(Path(path).read_text())
    config["train_loader"]["stages"] = [*STAGES[:2], {**STAGES[2], "proportions": {"web": 0.5, "code": 0.5}}]
    Path(path).write_text(yaml.safe_dump(config))
    run_with(path, [*OVERRIDES, *SPIKES], second)
    assert min(second.rows) == 9
    return first.rows | second.rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def batches(folder: Path) -> dict[int, Any]:
    return run_ranks(both, 1, write_curriculum(folder))[0]


@pytest.mark.slow
@pytest.mark.ranks
def test_the_rows_and_documents_of_each_step_are_those_that_the_model_saw(folder: Path, batches: dict) -> None:
    run = open_run(str(folder / "traced"))
    found = [*rows_of_steps(run, 1, 14)]
    assert [each.step for each in found] == [step for step in range(1, 15) for _ in range(8)]
    seen_rows = [row for batch in range(14) for row in batches[batch]]
    for each, (stream, tokens) in zip(found, seen_rows, strict=True):
        assert each.stream == ["web", "code", "math"][stream]
        assert run.folders[each.stream].read(each.row)["tokens"].tolist() == tokens
        text = bytes(token for token in tokens if token < 256).decode()
        for document in each.documents:
            path, _, position = document.rpartition(":")
            line = Path(path).read_bytes()[int(position) :].partition(b"\n")[0]
            assert json.loads(line)["prompt"] in text
        assert len(each.documents) == len(run.folders[each.stream].read(each.row)["lengths"])


@pytest.mark.slow
@pytest.mark.ranks
def test_skipped_and_undone_steps_of_a_real_run(folder: Path, batches: dict) -> None:
    run = open_run(str(folder / "traced"))
    assert len(run.state.segments) == 2
    status = {each.step: each.status for each in rows_of_steps(run, 1, 14)}
    assert {step: each for step, each in status.items() if each != "trained"} == {
        4: "undone by the rollback at step 5",
        5: "skipped",
        7: "skipped",
    }
    (last,) = [each for each in run.checkpoints if each.batch == 14]
    assert last.trained.batches.ranges == ((0, 3), (5, 6), (7, 14))
    assert sum(each.rows for each in seen(run)) == 8 * 11
    (loaders,) = {json.dumps(sorted(line.values["data"])) for line in run.record.starts}
    assert loaders == '["train_loader"]'


@pytest.mark.slow
@pytest.mark.ranks
def test_the_script_answers_questions_about_a_real_run(
    folder: Path, batches: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    main, answer = load_script("trace_documents").main, folder / "answer.json"

    def ask(*args: str) -> tuple[str, dict]:
        assert main([str(folder / "traced"), *args, "--json", str(answer)]) == 0
        return capsys.readouterr().out, json.loads(answer.read_text())

    text, values = ask("--steps", "5:6")
    assert text.startswith("step  status   stream  row  documents\n5     skipped  ")
    assert len(values["rows"]) == 16
    document = values["rows"][-1]["documents"][0]
    path, _, position = document.rpartition(":")
    line = Path(path).read_bytes()[: int(position)].count(b"\n") + 1
    for reference in (document, f"{path}:L{line}", document.rpartition("/")[2]):
        text, values = ask("--document", reference)
        assert 6 in values["documents"][0]["trained"]
        assert values["newest_without"] is None or values["newest_without"].endswith("ep0-ba3")
    (folder / "list.txt").write_text(f"{document}\n")
    assert ask("--documents", str(folder / "list.txt"))[1]["documents"][0]["reference"] == document
    text, values = ask("--seen", "--until", "3")
    assert sum(each["rows"] for each in values["streams"]) == 24
    assert "unknown" in text
    assert main([str(folder / "traced"), "--document", "wbe.jsonl:0"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert main([str(folder / "traced"), "--document", f"{document}1"]) == 1
    assert "not found in the rows: 1 of 1" in capsys.readouterr().out
    assert main([str(folder / "traced"), "--steps", "1", "--until", "3"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "5:2"], "'5:2' ends before it begins: write 2:5"),
        (["--steps", "5:"], "'5:' is not a step or a range of steps"),
        (["--steps", "1", "--json", "."], "error: --json is '.', which is a folder: specify a file"),
        (["--seen", "--json", "no/answer.json"], "error: --json is 'no/answer.json', but its folder does not exist"),
    ],
)
def test_wrong_arguments_are_reported_before_the_run_is_opened(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = load_script("trace_documents").main(["no-such-run", *arguments])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ranks
def test_the_event_of_a_real_run_is_valid(folder: Path, batches: dict) -> None:
    event = json.loads((folder / "traced" / LINEAGE).read_text())
    assert_valid(event)
    assert event["eventType"] == "COMPLETE"
    names = sorted(each["name"] for each in event["inputs"])
    assert names == [f"{folder}/{name}.jsonl" for name in ("code", "math", "web")]
    assert "ep0-ba14" in event["outputs"][0]["facets"]["dropless_checkpoints"]["checkpoints"]
