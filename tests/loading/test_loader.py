import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.utils.data import DistributedSampler

from data.base.durations import Clock
from data.base.errors import ConfigError, DataError
from data.loading.collate import collate
from data.loading.loader import eval_loader, train_loader
from data.loading.opening import open_rows
from data.mds.row import Row
from data.mixing.row_plan import RowPlan
from tests.helpers.toy_tokenizer import ToyTokenizer, loader_config, questions, write_jsonl

TOY = ToyTokenizer()
SIZES = {"seed": 17, "global_batch_size": 8, "n_batches": 25, "rank": 0, "world_size": 1, "pad_token_id": 257}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset of about 60 rows in several shards."""
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "train.jsonl", questions(200))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.mds.writer.SHARD_BYTES", 2000)
        open_rows(loader_config(folder).dataset, TOY)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return open_rows(loader_config(folder).dataset, TOY)


def train(rows, folder, num_workers=0, **changes):
    return loader_of({"": rows}, loader_config(folder, num_workers), **SIZES | changes)


def loader_of(streams, config, *, seed, global_batch_size, n_batches, **ranks):
    clock = Clock(tokens_per_batch=global_batch_size * 32, rows_per_batch=global_batch_size, rows_per_epoch=1)
    plan = RowPlan(config, streams, clock, seed=seed)
    return train_loader(streams, config, plan, n_batches=n_batches, **ranks)


def first_rows(plan, n) -> tuple[np.ndarray, np.ndarray]:
    """Streams and ids of the run's first n rows, batch by batch."""
    size = plan.global_batch_size
    parts = [plan.rows(batch, 0, size) for batch in range(-(-n // size))]
    streams, ids = (np.concatenate(column)[:n] for column in zip(*parts, strict=True))
    return streams, ids


def global_sequence(loaders) -> torch.Tensor:
    """input_ids of all batches, each batch put together from its ranks."""
    return torch.cat([torch.cat([part["input_ids"] for part in parts]) for parts in zip(*loaders, strict=True)])


def refusal(rows, folder, state, **changes) -> str:
    with pytest.raises(ConfigError) as error:
        train(rows, folder, **changes).dataset.load_state_dict(state)
    return str(error.value)


def some_rows(n: int, longest: int) -> list[Row]:
    rng = np.random.default_rng(0)
    out = []
    for _ in range(n):
        lengths = rng.integers(1, longest // 4, rng.integers(1, 5)).astype(np.int32)
        size = int(lengths.sum())
        mask = rng.integers(0, 2, size).astype(np.uint8)
        out.append(Row(rng.integers(0, 256, size).astype(np.int32), mask, lengths))
    return out


def test_a_batch_is_what_the_obvious_loop_makes():
    rows = some_rows(20, 40)
    batch = collate([*rows, None], 40, 257)
    for place, row in enumerate(rows):
        documents = [number for number, length in enumerate(row.lengths) for _ in range(length)]
        for t in range(40):
            inside, next_inside = t < len(row.tokens), t + 1 < len(row.tokens)
            trained = next_inside and row.loss_mask[t + 1] and documents[t] == documents[t + 1]
            assert batch["input_ids"][place, t] == (row.tokens[t] if inside else 257)
            assert batch["labels"][place, t] == (row.tokens[t + 1] if trained else -100)
            assert batch["document_ids"][place, t] == (documents[t] if inside else -1)
    padding = [set(batch[name][-1].tolist()) for name in ("input_ids", "labels", "document_ids")]
    assert padding == [{257}, {-100}, {-1}]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_trained_tokens_of_an_epoch_are_those_of_the_manifest(rows, folder):
    (batch,) = train(rows, folder, global_batch_size=rows.n_rows, n_batches=1)
    assert int((batch["labels"] != -100).sum()) == rows.trained_tokens
    assert int((batch["document_ids"] >= 0).sum()) == rows.tokens


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_number_of_ranks_and_workers_gives_the_same_rows(rows, folder, world_size, num_workers):
    loaders = [train(rows, folder, num_workers, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [len(loader) for loader in loaders] == [25] * world_size
    batches = train(rows, folder).dataset
    expected = torch.cat([batches[n]["input_ids"] for n in range(25)])
    assert expected.shape == (200, 32)
    assert torch.equal(global_sequence(loaders), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("first", [0, 7, 24, 25])
def test_resuming_at_a_batch_yields_the_rest_of_the_run(rows, folder, first, num_workers):
    whole = global_sequence([train(rows, folder)])
    state = train(rows, folder).dataset.state_dict(first * 8, True)
    loaders = [train(rows, folder, num_workers, rank=rank, world_size=2) for rank in range(2)]
    for loader in loaders:
        loader.dataset.load_state_dict(state)
        assert len(loader) == 25
    batches = [torch.cat([part["input_ids"] for part in parts]) for parts in zip(*loaders, strict=True)]
    assert len(batches) == 25 - first
    assert torch.equal(torch.cat([whole[:0], *batches]), whole[first * 8 :])


def test_each_epoch_has_each_row_once_in_another_order(rows, folder):
    streams, ids = first_rows(train(rows, folder).dataset.plan, 2 * rows.n_rows)
    assert not streams.any()
    first, second = ids.reshape(2, -1).tolist()
    assert sorted(first) == sorted(second) == list(range(rows.n_rows))
    assert first != second != sorted(second)


def test_shuffle_false_and_shuffle_seed_are_taken(rows, folder):
    def rows_of(seed, **changes):
        loader = loader_of({"": rows}, loader_config(folder, **changes), **SIZES | {"seed": seed})
        return first_rows(loader.dataset.plan, rows.n_rows)[1].tolist()

    assert rows_of(17, shuffle=False) == list(range(rows.n_rows))
    assert rows_of(17) != rows_of(18)
    assert rows_of(17, shuffle_seed=3) == rows_of(18, shuffle_seed=3) == rows_of(3)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 18}, "seed was 18, now 17"),
        (
            {"streams": [{"name": "", "fingerprint": "other"}]},
            "have changed (fingerprint was other, is now ",
        ),
        ({"max_seq_len": 64}, "max_seq_len was 64, now 32"),
        ({"shuffle": False}, "shuffle was False, now True"),
        ({"version": 9}, "data position has version 9, but this code supports versions 2"),
    ],
)
def test_a_position_with_another_meaning_is_refused(rows, folder, change, text):
    position = json.loads(train(rows, folder).dataset.state_dict(16, True)["position"])
    assert text in refusal(rows, folder, {"position": json.dumps(position | change)})


def test_another_global_batch_inside_the_run_is_refused(rows, folder):
    state = train(rows, folder, global_batch_size=4).dataset.state_dict(16, True)
    assert "global_train_batch_size was 4, now 8" in refusal(rows, folder, state)


def test_without_a_shuffle_the_seed_decides_nothing(rows, folder):
    config = loader_config(folder)
    config = dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, shuffle=False))
    first, loader = (loader_of({"": rows}, config, **SIZES | {"seed": seed}) for seed in (1, 2))
    state = first.dataset.state_dict(24, True)
    loader.dataset.load_state_dict(state)
    assert loader.dataset.first == 3


def test_a_dataset_smaller_than_a_batch_is_refused(rows, folder):
    with pytest.raises(DataError, match=rf"the dataset has {rows.n_rows} rows .*one global batch has 1000"):
        train(rows, folder, global_batch_size=1000)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("world_size", "size"), [(1, 1), (1, 7), (2, 4), (3, 5), (4, 100)])
def test_evaluation_sees_each_row_once_in_order(rows, folder, world_size, size, num_workers):
    options = {"device_batch_size": size, "world_size": world_size, "pad_token_id": 257}
    config = loader_config(folder, num_workers)
    loaders = [list(eval_loader({"": rows}, config, rank=rank, **options)) for rank in range(world_size)]
    assert {len(batches) for batches in loaders} == {-(-rows.n_rows // (world_size * size))}
    assert {batch["input_ids"].shape for batches in loaders for batch in batches} == {(size, 32)}
    seen = global_sequence(loaders)
    expected = collate([rows.read(row_id) for row_id in range(rows.n_rows)], 32, 257)["input_ids"]
    assert torch.equal(seen[: rows.n_rows], expected)
    assert (seen[rows.n_rows :] == 257).all()
    trained = sum(int((batch["labels"] != -100).sum()) for batches in loaders for batch in batches)
    assert trained == rows.trained_tokens


def test_composer_accepts_the_samplers_and_trims_nothing(rows, folder):
    """Composer's evaluation drops total_size - len(dataset) samples, and passes any number as the epoch."""
    loader = eval_loader({"": rows}, loader_config(folder), device_batch_size=7, rank=1, world_size=2, pad_token_id=257)
    assert isinstance(loader.sampler, DistributedSampler)
    assert loader.sampler.total_size - len(loader.sampler.dataset) == 0
    loader.sampler.set_epoch(12)
    training = train(rows, folder)
    assert isinstance(training.sampler, DistributedSampler)
    training.sampler.set_epoch(0)
    with pytest.raises(ValueError, match="epoch 1 was requested"):
        training.sampler.set_epoch(1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_does_not_move_the_models_random_numbers(rows, folder, num_workers):
    torch.manual_seed(0)
    next(iter(train(rows, folder, num_workers)))
    after = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_that_vanishes_is_one_clear_line(tmp_path, num_workers):
    write_jsonl(tmp_path / "train.jsonl", questions(50))
    rows = open_rows(loader_config(tmp_path).dataset, TOY)
    (rows.folder / "shard.00000.00.mds").unlink()
    with pytest.raises(DataError) as error:
        list(train(rows, tmp_path, num_workers))
    assert str(error.value).startswith("row ")
    assert "shard.00000.00.mds cannot be read (FileNotFoundError" in str(error.value)
    assert "\n" not in str(error.value)
