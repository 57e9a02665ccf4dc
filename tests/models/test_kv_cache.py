"""With a KV cache, the model computes the same outputs as without, however the tokens are split."""

from dataclasses import replace

import pytest
import torch

from tests.helpers.models import SHAPES, make_model, relative
from train.models.attention.kv_cache import KVCache

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
LENGTHS = (21, 3, 1, 14)


def rows(lengths, pad_at_left=False):
    """Ids and document ids of rows of these lengths, padded with a different id."""
    ids = torch.randint(0, 96, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    place, length_B = torch.arange(max(lengths)), torch.tensor(lengths).unsqueeze(1)
    real = place >= max(lengths) - length_B if pad_at_left else place < length_B
    return ids, torch.where(real, 0, -1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("cut", [[1] * 21, [5, 1, 1, 14], [20, 1]], ids=["tokens", "pieces", "all but one"])
@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_tokens_in_pieces_equal_one_forward(shape, dtype, bound, cut, device):
    model = make_model(SHAPES[shape], dtype, device)
    ids, documents = (x.to(device) for x in rows(LENGTHS))
    whole = model(ids, document_ids=documents, return_logits=True).logits_BSV
    cache = KVCache(len(LENGTHS), model.config)
    pieces = [
        model(piece, document_ids=of_piece, cache=cache, return_logits=True).logits_BSV
        for piece, of_piece in zip(ids.split(cut, 1), documents.split(cut, 1), strict=True)
        if (of_piece >= 0).any()
    ]
    assert cache.lengths == list(LENGTHS)
    assert relative(torch.cat(pieces, 1), whole) < bound


@torch.no_grad()
def test_the_cache_grows():
    model = make_model(replace(SHAPES["plain"], max_seq_len=700), torch.float64)
    ids, documents = rows((600, 590))
    whole = model(ids, document_ids=documents, return_logits=True).logits_BSV
    cache = KVCache(2, model.config)
    cut = [200, 100, 1, 299]
    pieces = [
        model(piece, document_ids=of_piece, cache=cache, return_logits=True).logits_BSV
        for piece, of_piece in zip(ids.split(cut, 1), documents.split(cut, 1), strict=True)
    ]
    assert relative(torch.cat(pieces, 1), whole) < 1e-10


@pytest.mark.parametrize("pad_at_left", [False, True])
@torch.no_grad()
def test_the_last_logits_are_those_of_each_rows_last_token(pad_at_left):
    model = make_model(SHAPES["plain"], torch.float64)
    ids, documents = rows(LENGTHS, pad_at_left)
    every = model(ids, document_ids=documents, return_logits=True).logits_BSV
    last = model(ids, document_ids=documents, return_logits="last").logits_BSV
    expected = [every[row, -1 if pad_at_left else length - 1] for row, length in enumerate(LENGTHS)]
    assert last.shape == (len(LENGTHS), 1, 96)
    assert relative(last[:, 0], torch.stack(expected)) < 1e-12


@torch.no_grad()
def test_a_row_without_new_tokens_keeps_its_cache():
    model = make_model(SHAPES["plain"], torch.float64)
    ids, _ = rows((9, 9))
    cache = KVCache(2, model.config)
    model(ids[:, :5], cache=cache)
    resting = torch.tensor([[0, 0], [-1, -1]])
    model(ids[:, 5:7], document_ids=resting, cache=cache)
    assert cache.lengths == [7, 5]
    resumed = model(ids[1:, 5:].expand(2, -1), document_ids=torch.tensor([[-1] * 4, [0] * 4]), cache=cache)
    assert cache.lengths == [7, 9]
    assert resumed.counts_LE.sum(1).tolist() == [12, 12]
    again = model(ids, cache=KVCache(2, model.config), return_logits="last").logits_BSV
    cache.lengths[1] = 8
    late = model(ids[:, 8:], document_ids=torch.tensor([[-1], [0]]), cache=cache, return_logits="last").logits_BSV
    assert relative(late[1], again[1]) < 1e-10


@torch.no_grad()
def test_no_row_gets_longer_than_max_seq_len():
    model = make_model(SHAPES["plain"], torch.float32)
    cache = KVCache(1, model.config)
    model(torch.zeros(1, 64, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="a row would have 65 positions, but the model's max_seq_len is 64"):
        model(torch.zeros(1, 1, dtype=torch.long), cache=cache)
    assert cache.lengths == [64]
