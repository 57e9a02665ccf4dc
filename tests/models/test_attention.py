"""Attention over packed documents: every backend against simple loops in fp64, memory use, and isolation of
documents."""

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from data.mds.row import IGNORED
from train.models.attention import layout as layout_module
from train.models.attention.attention import Attention, _ClipAndRotate, gradient_bound
from train.models.attention.backends import BACKENDS, FlashBackend, FlexBackend, make_flash_backend
from train.models.attention.blocks import Block, _mask, make_blocks_backend
from train.models.attention.layout import Layout, find_documents, make_layout, resolve_attn_impl
from train.models.attention.sdpa import SdpaBackend, make_sdpa_backend, split_into_calls
from train.models.config import AttnConfig, FFNConfig, ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.init import initialise
from train.models.recompute import up_to_last

ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
DEVICES = [torch.device(name) for name in ("cpu", *(["cuda"] if torch.cuda.is_available() else []))]


def usable(impl: str, device: torch.device, dtype: torch.dtype) -> bool:
    try:
        resolve_attn_impl(impl, device, dtype=dtype)
    except ValueError:
        return False
    # Triton does not support dot in fp64.
    return not (impl == "flex" and device.type == "cuda" and dtype == torch.float64)


DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
CASES = [
    pytest.param(impl, device, dtype, bound, id=f"{impl} {device} {str(dtype).removeprefix('torch.')}")
    for device in DEVICES
    for impl in BACKENDS
    for dtype, bound in DTYPES.items()
    if usable(impl, device, dtype)
]
ROWS = {
    "one full row": [[24]],
    "padding, single tokens, a row of padding": [[3, 1, 7, 2], [], [1], [16]],
    "many short": [[5] * 4, [2, 3] * 4],
    "short beside long": [[1, 1, 170, 1], [33, 90]],
}


def make_rows(lengths: list[list[int]], spare: int = 3) -> Tensor:
    """document_ids [B, S] with some padding after the longest row, unless spare is 0."""
    width = max(sum(row) for row in lengths) + spare
    rows = [[i for i, n in enumerate(row) for _ in range(n)] for row in lengths]
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


def make_config(impl: str = "auto", **attn: Any) -> ModelConfig:
    return ModelConfig(
        d_model=64,
        n_heads=4,
        n_layers=2,
        max_seq_len=1024,
        vocab_size=64,
        attn_config=AttnConfig(**{"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 1.5, "attn_impl": impl, **attn}),
        ffn_config=FFNConfig(ffn_hidden_size=16, moe_num_experts=4, moe_top_k=4),
        initializer_range=0.2,
    )


def make_model(config: ModelConfig, seed: int = 0) -> DbrxForCausalLM:
    model = DbrxForCausalLM(config)
    initialise(model, config, seed)
    return model


def make_attention(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Attention:
    torch.manual_seed(0)
    attention = Attention(config)
    for param in attention.parameters():
        torch.nn.init.normal_(param, std=0.2)
    return attention.to(device, dtype)


def layout_of(documents_BS: Tensor, config: ModelConfig, dtype: torch.dtype) -> Layout:
    return make_layout(find_documents(torch.zeros_like(documents_BS), documents_BS, config), config, dtype)


def turn(x: Tensor, position: int, theta: float) -> Tensor:
    """RoPE of one head: pairs (x[i], x[i + C/2]) as complex numbers, rotated by position / theta^(2i/C) in fp32."""
    low, high = x.chunk(2)
    angle = position * (1.0 / theta ** (torch.arange(0, x.shape[0], 2, dtype=torch.float32) / x.shape[0]))
    turned = torch.complex(low, high) * torch.complex(angle.cos().to(x.dtype), angle.sin().to(x.dtype))
    return torch.cat((turned.real, turned.imag))


def obvious(x_TD: Tensor, lengths: list[int], Wqkv: Tensor, out_proj: Tensor, config: ModelConfig) -> Tensor:
    """A simple reference: one document, one head, one query at a time."""
    attn, C, outputs = config.attn_config, config.head_dim, []
    for x in x_TD.split(lengths):
        qkv = (x @ Wqkv.T).clamp(-attn.clip_qkv, attn.clip_qkv)
        q, k, v = qkv.split((config.d_model, attn.kv_n_heads * C, attn.kv_n_heads * C), dim=1)
        heads = []
        for head in range(config.n_heads):
            own, shared = slice(head * C, (head + 1) * C), head // (config.n_heads // attn.kv_n_heads)
            group = slice(shared * C, (shared + 1) * C)
            queries = [turn(row, i, attn.rope_theta) for i, row in enumerate(q[:, own])]
            keys = torch.stack([turn(row, i, attn.rope_theta) for i, row in enumerate(k[:, group])])
            weights = [(keys[: i + 1] @ query / math.sqrt(C)).softmax(0) for i, query in enumerate(queries)]
            heads.append(torch.stack([w @ v[: i + 1, group] for i, w in enumerate(weights)]))
        outputs.append(torch.cat(heads, dim=1))
    return torch.cat(outputs) @ out_proj.T


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("lengths", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(("impl", "device", "dtype", "bound"), CASES)
def test_a_backend_equals_the_obvious_loops_forward_and_backward(
    impl: str, device: torch.device, dtype: torch.dtype, bound: float, lengths: list[list[int]]
) -> None:
    # In bf16, rounding moves values close to the clip bound across it, which changes their gradient.
    config = make_config(impl, clip_qkv=8.0 if dtype == torch.bfloat16 else 1.5)
    flat = [n for row in lengths for n in row]
    attention = make_attention(config, device, dtype)
    x = torch.randn(sum(flat), 64, dtype=dtype, device=device, requires_grad=True)
    inputs = (x, attention.Wqkv.weight, attention.out_proj.weight)
    y = attention(x, layout_of(make_rows(lengths).to(device), config, dtype))
    grad = torch.randn_like(y)
    exact = [tensor.detach().double().cpu().requires_grad_() for tensor in inputs]
    expected = obvious(exact[0], flat, *exact[1:], config)
    ours, theirs = torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, exact, grad.double().cpu())
    for mine, right in zip((y, *ours), (expected, *theirs), strict=True):
        # The angles are in fp32 for every dtype, in the model and in the reference.
        assert relative(mine.detach().double().cpu(), right) < bound


@pytest.mark.parametrize("clip", [None, 1.5, 0.7])
@pytest.mark.parametrize(
    ("dtype", "angles", "bound"),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.bfloat16, 0.02),
        (torch.bfloat16, torch.float32, 0.02),
        (torch.float16, torch.float32, 2e-3),
    ],
    ids=str,
)
def test_clipping_and_rotation_equal_torchs_autograd(
    dtype: torch.dtype, angles: torch.dtype, bound: float, clip: float | None
) -> None:
    qkv = (2 * torch.randn(7, 6 * 4)).to(dtype)
    if clip is not None:
        # Whether the clip bounds themselves get a gradient depends on the version of torch.
        qkv[0, ::2], qkv[1, ::3] = clip, -clip
    qkv.requires_grad_()
    angle = torch.randn(7, 2).repeat(1, 2)
    cos, sin = angle.cos().to(angles), angle.sin().to(angles)
    parts = _ClipAndRotate.apply(qkv, cos, sin, clip, 4, 1)
    clipped = (qkv if clip is None else qkv.clamp(-clip, clip)).unflatten(1, (6, 4))
    low, high = clipped[:, :5].chunk(2, dim=-1)
    turned = clipped[:, :5] * cos.unsqueeze(1) + torch.cat((-high, low), dim=-1) * sin.unsqueeze(1)
    expected = (*turned.to(dtype).split((4, 1), dim=1), clipped[:, 5:])
    grads = [torch.randn_like(part) for part in expected]
    ours, theirs = (torch.autograd.grad(side, qkv, grads)[0] for side in (parts, expected))
    assert clip is None or not ours[qkv.abs() > clip].any()
    for mine, right in zip((*parts, ours), (*expected, theirs), strict=True):
        assert mine.dtype is dtype
        assert relative(mine.double(), right.double()) < bound


def test_the_probe_of_clamp_does_not_affect_checkpointing() -> None:
    qkv, angle = 2 * torch.randn(7, 24), torch.randn(7, 4)
    gradient_bound.cache_clear()
    grads = []
    for run in (up_to_last, lambda function, *args: function(*args)):
        x = qkv.clone().requires_grad_()
        y = run(lambda x: torch.cat(_ClipAndRotate.apply(x.sin(), angle, angle, 0.5, 4, 1), dim=1).sin(), x)
        grads += torch.autograd.grad(y.sum(), x)
    assert torch.equal(*grads)


@pytest.mark.parametrize("lengths", [*ROWS.values(), [[130, 126], [128, 1, 255], [300]]])
def test_flex_visits_only_the_necessary_blocks(lengths: list[list[int]]) -> None:
    """Forward only, so that it runs with every version of torch: not all support FlexAttention's backward on a CPU."""
    documents, config = make_rows(lengths), make_config("sdpa")
    attention = make_attention(config, DEVICES[0], torch.float64)
    found = find_documents(torch.zeros_like(documents), documents, config)
    x = torch.randn(len(found.place_T), 64, dtype=torch.float64)
    layout = layout_of(documents, config, torch.float64)
    flex = BACKENDS["flex"](found.lengths, found.n_positions, DEVICES[0])
    assert isinstance(flex, FlexBackend)
    assert isinstance(layout.backend, SdpaBackend)
    angles = (layout.backend.leave(angle) for angle in (layout.cos_PC, layout.sin_PC))
    with torch.no_grad():
        y = attention(x, Layout(layout.place_T, *(flex.enter(angle) for angle in angles), flex))
    assert relative(y, attention(x, layout)) < 1e-12
    mask, place = flex.block_mask, torch.arange(flex.n_places)
    zero = torch.zeros_like(place)
    blocks = mask.mask_mod(zero, zero, place[:, None], place[None, :]).unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
    every, some = blocks.all(3).all(1), blocks.any(3).any(1)
    assert torch.equal(listed(mask.full_kv_num_blocks, mask.full_kv_indices), every)
    assert torch.equal(listed(mask.kv_num_blocks, mask.kv_indices), some & ~every)


def listed(counts: Tensor, indices: Tensor) -> Tensor:
    """The blocks of keys that each block of queries visits, from FlexAttention's lists."""
    visited = torch.zeros(indices.shape[2:], dtype=torch.bool)
    for row, (count, index) in enumerate(zip(counts[0, 0].tolist(), indices[0, 0].tolist(), strict=True)):
        visited[row, index[:count]] = True
    return visited


def test_sdpa_is_among_the_tested_backends() -> None:
    tested = {(param.values[0], param.values[1].type) for param in CASES}
    assert {("sdpa", "cpu"), ("blocks", "cpu")} <= tested
    if torch.cuda.is_available():
        assert {("sdpa", "cuda"), ("flex", "cuda")} <= tested


@pytest.mark.parametrize(("impl", "device", "dtype", "bound"), CASES)
def test_a_packed_document_has_the_logits_of_the_document_alone(
    impl: str, device: torch.device, dtype: torch.dtype, bound: float
) -> None:
    model = make_model(make_config(impl)).to(device, dtype).eval()
    lengths = [[7, 9, 1], [3, 1, 13], []]
    documents = make_rows(lengths).to(device)
    ids = torch.randint(0, 64, documents.shape, device=device)
    packed = model(ids, document_ids=documents, return_logits=True).logits_BSV
    for row, own in enumerate(lengths):
        for i in range(len(own)):
            start, stop = sum(own[:i]), sum(own[: i + 1])
            alone = model(ids[row : row + 1, start:stop], return_logits=True).logits_BSV[0]
            assert relative(packed[row, start:stop], alone) < bound
    assert not packed[documents < 0].any()


@pytest.mark.parametrize(("impl", "device", "dtype", "bound"), CASES)
def test_the_gradient_across_documents_is_exactly_zero(
    impl: str, device: torch.device, dtype: torch.dtype, bound: float
) -> None:
    config = make_config(impl)
    attention = make_attention(config, device, dtype)
    # Different lengths, so that SDPA pads the documents in one call, and `blocks` puts them into one block.
    lengths = [12, 10, 11, 9]
    x = torch.randn(sum(lengths), 64, dtype=dtype, device=device, requires_grad=True)
    layout = layout_of(make_rows([lengths[:2], lengths[2:]]).to(device), config, dtype)
    for i in range(4):
        (grad,) = torch.autograd.grad(attention(x, layout).split(lengths)[i].square().sum(), x)
        for j, part in enumerate(grad.split(lengths)):
            assert part.any() == (i == j)


def test_the_loss_of_a_document_does_not_reach_anothers_embeddings() -> None:
    model = make_model(make_config())
    documents = make_rows([[8, 5, 9]])
    ids = torch.arange(documents.shape[1])[None]  # every position has a different token
    out = model(ids, torch.where(documents == 1, 7, IGNORED), documents)
    out.losses_BS.sum().backward()
    touched = model.transformer.wte.weight.grad.abs().sum(1).nonzero().squeeze(1)
    assert touched.tolist() == list(range(8, 13))


def test_positions_restart_in_every_document_and_count_in_fp32() -> None:
    documents = torch.tensor([[0, 0, 0, 1, -1], [0, 1, 1, 1, 1]])
    found = find_documents(torch.zeros_like(documents), documents, make_config())
    assert found.lengths == [3, 1, 1, 4]
    assert found.position_T.tolist() == [0, 1, 2, 0, 0, 0, 1, 2, 3]
    assert found.place_T.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    late = torch.zeros(1, 1001, dtype=torch.int64)
    cos = layout_of(late, make_config(), torch.float64).cos_PC[1000, 0]
    assert cos == torch.tensor(1000.0).cos().double()


def test_rows_of_padding_alone_give_nothing_and_zero_gradients() -> None:
    for impl in ("sdpa", "blocks", "flex") if usable("flex", DEVICES[0], torch.float32) else ("sdpa", "blocks"):
        attention = make_attention(make_config(impl), DEVICES[0], torch.float32)
        layout = layout_of(torch.full((2, 6), -1), make_config(impl), torch.float32)
        y = attention(torch.zeros(0, 64, requires_grad=True), layout)
        y.sum().backward()
        assert y.shape == (0, 64)
        assert all(param.grad is not None and not param.grad.any() for param in attention.parameters())


LENGTHS = {
    "tiny": [20] * 25,
    "one of 32,768": [32768],
    "every length once": list(range(1, 2001)),
    "long beside short": [32768] + [1] * 500 + [3000, 40, 39, 20000],
    "random": torch.randint(1, 4096, (300,), generator=torch.Generator().manual_seed(0)).tolist(),
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_calls_are_few_and_padding_is_little(lengths: list[int]) -> None:
    calls = split_into_calls(sorted(lengths, reverse=True))
    assert sum(documents for documents, _ in calls) == len(lengths)
    # Lengths fall by a factor of 4/5 per call, until whole documents fit into a call's slack.
    assert len(calls) <= math.log(max(lengths)) / math.log(1.25) + 1
    assert sum(documents * length for documents, length in calls) <= 1.25 * sum(lengths) + 128 * len(calls)
    assert split_into_calls([20] * 25) == [(25, 20)]
    assert split_into_calls([31] * 25) == [(25, 32)]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_every_token_has_its_place_and_padding_repeats_its_own_document(lengths: list[int]) -> None:
    backend = make_sdpa_backend(lengths, sum(lengths), torch.device("cpu"))
    token = torch.arange(sum(lengths))
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    if backend.source_P is None or backend.slot_T is None:
        assert len(set(lengths)) == 1
        return
    assert torch.equal(backend.source_P[backend.slot_T], token)
    start = 0
    for documents, length in backend.calls:
        held = document[backend.source_P[start : start + documents * length]].view(documents, length)
        assert (held == held[:, :1]).all()
        start += documents * length


def test_documents_already_in_kernel_order_are_not_moved() -> None:
    assert make_sdpa_backend([32768], 32768, torch.device("cpu")) == SdpaBackend([(1, 32768)], None, None)
    assert make_sdpa_backend([64] * 8, 512, torch.device("cpu")) == SdpaBackend([(8, 64)], None, None)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_blocks_hold_every_token_once_with_the_keys_of_its_document(lengths: list[int]) -> None:
    backend, start = make_blocks_backend(lengths, sum(lengths), torch.device("cpu")), 0
    # For each token, its position in its document according to the blocks, and as expected; -1 where SDPA computes.
    got, expected = [], [i if n <= 1024 else -1 for n in lengths for i in range(n)]
    for tokens, blocks in backend.runs:
        got += [-1] * (0 if blocks else tokens)
        assert [block.start for block in blocks] == [0, *(block.end for block in blocks)][: len(blocks)]
        assert not blocks or blocks[-1].end == tokens
        for block in blocks:
            assert sum(block.lengths) == block.end - block.start <= 64
            assert len(block.lengths) == 1 or block.first == block.start
            got += [block.start - block.first + i for i in range(block.lengths[0])]
            got += [i for n in block.lengths[1:] for i in range(n)]
        start += tokens
    assert (got, start) == (expected, sum(lengths))
    # Two consecutive short documents never make two blocks, and long ones are not split more than necessary.
    most = sum(-(-n // 64) for n in lengths if n > 64) + sum(lengths) // 32 + sum(n > 32 for n in lengths) + 1
    assert sum(len(run.blocks) for run in backend.runs) <= most


def test_blocks_of_short_documents_keep_them_apart() -> None:
    (run,) = make_blocks_backend([60, 3, 2, 65], 130, CPU).runs
    short = [Block(0, 0, 63, (60, 3)), Block(63, 63, 65, (2,))]
    assert run.blocks == [*short, Block(65, 65, 97, (32,)), Block(65, 97, 130, (33,))]
    sees = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert torch.equal(_mask((2, 2)).exp(), torch.tensor(sees).float())


def test_blocks_next_to_documents_computed_by_sdpa() -> None:
    lengths = [70, 1100, 3, 64, 1, 1030, 1024]
    x = torch.randn(sum(lengths), 64, dtype=torch.float64, requires_grad=True)
    found = []
    for impl in ("sdpa", "blocks"):
        config = dataclasses.replace(make_config(impl), max_seq_len=sum(lengths))
        attention = make_attention(config, CPU, torch.float64)
        y = attention(x, layout_of(make_rows([lengths], spare=0), config, torch.float64))
        torch.manual_seed(1)
        found.append((y, *torch.autograd.grad(y, (x, *attention.parameters()), torch.randn_like(y))))
    for ours, right in zip(found[1], found[0], strict=True):
        assert relative(ours, right) < 1e-12


class Largest(TorchDispatchMode):
    """Records the largest number of elements of any operation's result; views with stride 0 count as their storage."""

    def __init__(self) -> None:
        super().__init__()
        self.numel, self.calls = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls += "attention" in func.__name__ and "backward" not in func.__name__
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def saved_bytes(run: Callable[[], Tensor]) -> tuple[int, int, int]:
    """(bytes saved for backward, each storage counted once; elements of the largest result; calls of SDPA's kernel)"""
    storages: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run().sum().backward()
    return sum(storage.nbytes() for storage in storages.values()), largest.numel, largest.calls


@pytest.mark.parametrize("impl", ["sdpa", "blocks"])
@pytest.mark.parametrize("kind", ["one document", "many documents"])
def test_memory_grows_linearly_with_the_row_length(kind: str, impl: str) -> None:
    config = make_config(impl)
    attention, seen = make_attention(config, DEVICES[0], torch.float32), {}
    for length in (256, 512, 1024):
        lengths = [length] if kind == "one document" else [20, 31, 13] * (length // 64)
        x = torch.randn(sum(lengths), 64, requires_grad=True)
        rows = make_rows([lengths], spare=length - sum(lengths))
        layout = layout_of(rows, config, torch.float32)
        seen[length], numel, calls = saved_bytes(lambda x=x, layout=layout: attention(x, layout))
        # The largest tensor is queries, keys and values (128 numbers per token) with padding, never S * S; or, for
        # `blocks`, the scores of 64 queries of 4 heads against all keys.
        assert numel <= max((1.25 * length + 128 * calls) * 128, 64 * 4 * length * (impl == "blocks"))
        assert numel < length**2 or length == 256
        assert calls <= 2
    assert seen[1024] / seen[512] == pytest.approx(2, rel=0.1)
    assert seen[512] / seen[256] == pytest.approx(2, rel=0.15)


def test_the_memory_check_detects_a_square_of_the_row_length() -> None:
    x = torch.randn(300, 64, requires_grad=True)
    held, numel, _ = saved_bytes(lambda: (x @ x.T).softmax(1) @ x)
    assert numel == 300 * 300
    assert held > 300 * 300 * 4


def test_dropout_drops_and_scales_weights_and_only_in_training() -> None:
    # Values are unit vectors, so the outputs are the attention weights.
    length, drop = 24, 0.4
    lengths = [length, length - 3]
    backend = make_sdpa_backend(lengths, 2 * length, DEVICES[0])
    torch.manual_seed(0)
    q, k = torch.randn(2, sum(lengths), length, dtype=torch.float64)
    v = torch.cat([torch.eye(length, dtype=torch.float64)[:n] for n in lengths])
    q, k, v = (backend.enter(x).unsqueeze(1) for x in (q, k, v))
    whole, dropped = (backend.leave(backend.attend(q, k, v, p).squeeze(1)) for p in (0.0, drop))
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / (1 - drop))
    assert kept.sum() / (whole != 0).sum() == pytest.approx(1 - drop, abs=0.1)
    config = make_config(attn_pdrop=drop)
    attention = make_attention(config, DEVICES[0], torch.float64)
    x, layout = torch.randn(9, 64).double(), layout_of(torch.zeros(1, 9).long(), config, torch.float64)
    assert not torch.equal(attention.train()(x, layout), attention(x, layout))
    assert torch.equal(attention.eval()(x, layout), attention(x, layout))


def stand_in_varlen(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    """The function flash_attn_varlen_func according to its documentation: causal attention between the bounds."""
    assert given["causal"] is True
    assert torch.equal(given["cu_seqlens_q"], given["cu_seqlens_k"])
    assert given["cu_seqlens_q"].dtype == torch.int32
    bounds, parts = given["cu_seqlens_q"].tolist(), []
    assert given["max_seqlen_q"] == given["max_seqlen_k"] == max(b - a for a, b in pairwise(bounds))
    for start, stop in pairwise(bounds):
        scores = torch.einsum(
            "qhc,khc->hqk", q[start:stop], k[start:stop].repeat_interleave(q.shape[1] // k.shape[1], 1)
        )
        future = torch.ones(stop - start, stop - start).triu(1).bool()
        weights = (scores / math.sqrt(q.shape[2])).masked_fill(future, -torch.inf).softmax(-1)
        parts.append(
            torch.einsum("hqk,khc->qhc", weights, v[start:stop].repeat_interleave(q.shape[1] // v.shape[1], 1))
        )
    return torch.cat(parts)


def test_flash_attn_is_called_as_it_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the call: the kernel itself is tested above, where flash-attn is installed."""
    config, lengths = make_config("sdpa"), [5, 1, 12, 7]
    module = type(sys)("flash_attn")
    module.flash_attn_varlen_func = stand_in_varlen  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    attention = make_attention(config, DEVICES[0], torch.float64)
    x = torch.randn(sum(lengths), 64, dtype=torch.float64)
    layout = layout_of(make_rows([lengths[:2], lengths[2:]]), config, torch.float64)
    assert isinstance(layout.backend, SdpaBackend)
    angles = (layout.backend.leave(angle) for angle in (layout.cos_PC, layout.sin_PC))
    packed = Layout(layout.place_T, *angles, make_flash_backend(lengths, 0, DEVICES[0]))
    assert isinstance(packed.backend, FlashBackend)
    assert relative(attention(x, packed), attention(x, layout)) < 1e-12


@pytest.fixture
def fresh_probes() -> Iterator[None]:
    for probe in (layout_module._flash_import_error, layout_module._why_not_flex):
        probe.cache_clear()
    yield
    for probe in (layout_module._flash_import_error, layout_module._why_not_flex):
        probe.cache_clear()


@pytest.mark.usefixtures("fresh_probes")
def test_unavailable_attention_backends_give_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def message(impl: str, device: torch.device = CUDA, **asked: Any) -> str:
        with pytest.raises(ValueError, match=r"^attn_config.attn_impl") as error:
            resolve_attn_impl(impl, device, **asked)
        return str(error.value)

    assert "expected one of auto, sdpa, blocks, flex, flash, got 'eager'" in message("eager")
    assert message("blocks").endswith("blocks runs only on a CPU, and this run is on cuda: use auto or sdpa")
    assert "blocks does not support dropout, and attn_pdrop is not 0" in message("blocks", CPU, attn_pdrop=0.1)
    assert "only fp32 and fp64, but attention is computed in bfloat16" in message("blocks", CPU, dtype=torch.bfloat16)
    assert message("flash", CPU).endswith("runs only on a CUDA GPU, and this run is on cpu: use auto or sdpa")
    assert "does not support dropout, and attn_pdrop is not 0" in message("flex", attn_pdrop=0.1)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.delitem(sys.modules, "flash_attn")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert "flash, but the package flash-attn is not installed" in message("flash")
    layout_module._flash_import_error.cache_clear()
    (tmp_path / "flash_attn.py").write_text("raise OSError('undefined symbol:\\n _ZN3c10')")
    assert "is installed but cannot be imported (OSError: undefined symbol: _ZN3c10)" in message("flash")


@pytest.mark.usefixtures("fresh_probes")
def test_auto_takes_flash_attn_where_it_can_compute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "flash_attn.py").write_text("def flash_attn_varlen_func(): ...")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert resolve_attn_impl("auto", CPU) == "blocks"
    assert resolve_attn_impl("auto", CPU, dtype=torch.bfloat16) == "sdpa"
    assert resolve_attn_impl("auto", CPU, attn_pdrop=0.1) == "sdpa"
    assert resolve_attn_impl("auto", CUDA, dtype=torch.bfloat16) == "flash"
    assert resolve_attn_impl("auto", CUDA, dtype=torch.float32) == "sdpa"
    with pytest.raises(ValueError, match="supports only bf16 and fp16, but attention is computed in float32"):
        resolve_attn_impl("flash", CUDA, dtype=torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a T4")
    assert resolve_attn_impl("auto", CUDA, dtype=torch.bfloat16) == "sdpa"
    sys.modules.pop("flash_attn", None)


def test_rows_that_are_too_long_and_unknown_tokens_are_one_clear_error() -> None:
    model = make_model(make_config())
    with pytest.raises(ValueError, match="a row has 1025 positions, but the model's max_seq_len is 1024"):
        model(torch.zeros(1, 1025, dtype=torch.int64))
    ids = torch.zeros(2, 9, dtype=torch.int64)
    for token in (64, -3):
        ids[1, 4] = token
        with pytest.raises(ValueError, match=f"token id {token} at row 1, position 4 is outside the vocabulary of 64"):
            model(ids)
    # Padding is never looked up, so its token ids do not matter.
    model(ids, document_ids=make_rows([[9], [4]], spare=0))


@pytest.mark.subprocess
def test_long_rows_are_measured_in_separate_processes(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/bench/long_rows.py", "--lengths", "512", "--json", str(tmp_path / "long.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    one, many = json.loads((tmp_path / "long.json").read_text())
    assert (one["tokens"], one["documents"], many["tokens"]) == (512, 1, 512)
    assert many["documents"] > 1
    assert len(done.stdout.splitlines()) == 3
