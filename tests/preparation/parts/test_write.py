"""Parts that several tasks write at the same time."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from data.preparation.parts import write
from data.preparation.parts.plan import done, plan
from data.preparation.parts.write import write_part
from data.preparation.prepare import _tokenizing, prepare_into
from data.sources.source import open_source
from tests.helpers.prepared import TOY, contents
from tests.helpers.toy_tokenizer import dataset_config, questions, write_jsonl


@pytest.fixture
def job(tmp_path, small_pieces):
    write_jsonl(tmp_path / "train.jsonl", questions(300))
    config, folder = dataset_config(tmp_path, prepare_workers=1), tmp_path / "out"
    source = open_source(config)
    return plan(folder, _tokenizing(folder, config, source, TOY), config, {}, None)


def test_a_slice_that_two_tasks_prepare_at_the_same_time_has_one_part(job, tmp_path, monkeypatch):
    together = Barrier(2, timeout=30)
    commit = write._commit

    def commit_together(attempt, place):
        together.wait()
        commit(attempt, place)

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as threads:
        patch.setattr(write, "_commit", commit_together)
        for slice in job.slices:
            first, second = threads.map(write_part, [job, job], [slice, slice])
            assert first == second
    assert sorted(done(job.folder)) == list(range(len(job.slices)))
    assert [path.name for path in (job.folder / "unfinished").glob("attempt-*")] == []
    expected = contents(prepare_into(tmp_path / "local", job.config, TOY))
    shards = {path.name: path.read_bytes() for path in (job.folder / "unfinished" / "parts").glob("*/shard.*")}
    assert shards == {name: content for name, content in expected.items() if name.startswith("shard.")}
    assert len(shards) > 3
