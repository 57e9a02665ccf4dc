"""Parts: their bytes do not depend on how they are prepared, and each row has its documents."""

import json
import threading
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest

from data.mds.writer import MANIFEST
from data.preparation.packing.documents import Documents
from data.preparation.parts.manifest import fingerprint_of, in_version
from data.preparation.parts.part import part_folder, read_part
from data.preparation.parts.plan import Job, plan
from data.preparation.parts.row_documents import RowDocuments
from data.preparation.parts.write import write_part
from data.preparation.prepare import prepare, prepare_into
from tests.helpers.prepared import TOY, contents, manifest_of, samples_of
from tests.helpers.toy_tokenizer import dataset_config, questions, write_jsonl


@pytest.fixture
def job(tmp_path, small_pieces, monkeypatch) -> Job:
    """A job whose parts are not prepared yet."""
    write_jsonl(tmp_path / "train.jsonl", questions(300))
    jobs = []
    monkeypatch.setattr("data.preparation.prepare.run", lambda job, engine: jobs.append(job) or [])
    with pytest.raises(Exception, match="slices are not prepared"):
        prepare_into(tmp_path / "out", dataset_config(tmp_path, prepare_workers=1), TOY)
    return jobs[0]


@pytest.mark.parametrize("slice", [0, 3])
def test_a_slice_prepared_twice_at_the_same_time_is_one_part(job, slice):
    work = partial(write_part, job, job.slices[slice])
    expected = work()
    before = contents(part_folder(job.folder, slice))
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(part_folder(job.folder, slice)) == before
    assert read_part(job.folder, slice) == expected
    assert not list((job.folder / "unfinished").glob("attempt-*"))


def test_chunks_in_parallel_and_in_sequence_have_the_same_bytes(job):
    write_part(job, job.slices[1])
    alone = contents(part_folder(job.folder, 1))
    part_folder(job.folder, 1).rename(job.folder / "alone")
    write_part(job, job.slices[1], n_workers=2)
    assert contents(part_folder(job.folder, 1)) == alone


@pytest.mark.parametrize("packing", ["best_fit", "none"])
@pytest.mark.parametrize("kind", ["pairs", "texts"])
def test_each_row_has_its_documents(tmp_path, small_pieces, packing, kind):
    records = [{"text": "t" * (3 * n % 100 + 1)} for n in range(200)] if kind == "texts" else questions(200)
    write_jsonl(tmp_path / "train.jsonl", records)
    folder = prepare(dataset_config(tmp_path, packing=packing), TOY)
    rows, seen = iter(samples_of(folder)), 0
    for entry in manifest_of(folder)["documents"]:
        documents = RowDocuments.decode((folder / entry["basename"]).read_bytes())
        assert (entry["rows"], entry["n_documents"]) == (len(documents.counts_R), len(documents.files_D))
        for numbers in np.split(documents.documents_P, np.cumsum(documents.counts_R)[:-1]):
            row, start = next(rows), 0
            for number, length in zip(numbers.tolist(), row["lengths"].tolist(), strict=True):
                text = "".join(record_at(tmp_path / "train.jsonl", int(documents.positions_D[number])).values())
                assert TOY.decode(row["tokens"][start : start + length]) in text
                start += length
                seen += 1
    assert next(rows, None) is None
    assert seen >= 200


def record_at(path, position: int) -> dict:
    with path.open("rb") as file:
        file.seek(position)
        return json.loads(file.readline())


@pytest.mark.parametrize("explicit", [True, False])
def test_folders_of_version_3_are_used(tmp_path, explicit):
    write_jsonl(tmp_path / "train.jsonl", questions(10))
    config = dataset_config(tmp_path)
    again = partial(prepare_into, tmp_path / "out", config, TOY) if explicit else partial(prepare, config, TOY)
    folder = again()
    manifest = manifest_of(folder)
    manifest["format"], manifest["made_from"] = 3, in_version(manifest["made_from"], 3)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    if not explicit:
        folder = folder.rename(folder.with_name(fingerprint_of(manifest["made_from"])))
    before = contents(folder)
    assert again() == folder
    assert contents(folder) == before


def test_a_plan_is_the_same_when_it_is_made_again(job):
    file = job.folder / "unfinished" / "plan.json"
    made_from, before = json.loads(file.read_text())["made_from"], file.read_bytes()
    assert plan(job.folder, job.recipe, job.config, made_from, job.compression) == job
    assert file.read_bytes() == before


def test_each_chunk_is_weighed_once(job, monkeypatch):
    weighed, weight = [], Documents.weight.fget
    monkeypatch.setattr(Documents, "weight", property(lambda self: weighed.append(self) or weight(self)))
    monkeypatch.setattr("data.preparation.parts.write.WINDOW_TOKENS", 1 << 30)
    n_chunks = len(list(job.recipe.source.chunks(job.slices[1])))
    write_part(job, job.slices[1])
    assert len(weighed) == n_chunks > 2


def test_a_plan_is_written_on_a_file_system_without_hard_links(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "train.jsonl", questions(10))
    expected = contents(prepare_into(tmp_path / "with", dataset_config(tmp_path), TOY))
    monkeypatch.setattr("os.link", Mock(side_effect=PermissionError))
    assert contents(prepare_into(tmp_path / "without", dataset_config(tmp_path), TOY)) == expected
