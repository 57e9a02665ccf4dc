"""Check that unmodified transformers computes the same logits from an exported folder as this framework computes from
the checkpoint. Both are computed in fp32, block by block. At most one block of one model is in memory, so that the
check also works for the 132B model.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from torch import Tensor, nn

from data.base.errors import ConfigError
from data.base.sizes import parse_bytes
from train.export.export import Run
from train.hf.raw_rows import opened, read_rows
from train.hf.safetensors_file import Stored
from train.hf.tensors import n_bytes, row_blocks
from train.models.attention.layout import Layout, find_documents, make_layout
from train.models.config import ModelConfig
from train.models.dbrx import DbrxBlock
from train.models.lora.linear import Linear
from train.models.precision import FORMATS, Precision
from train.models.shapes import parameter_shapes

Written = Mapping[str, tuple[Path, Stored]]
"""For each tensor in the folder, the file that contains it and its location in the file."""
TOLERANCE = 1e-4
"""Maximum difference, relative to the token's largest absolute value. The fp32 rounding error is about 1e-6."""
WHOLE_BYTES = parse_bytes("20gb")
"""Models up to this size in fp32 are also compared as a whole."""
_N_ROWS, _ROW_LENGTH = 2, 48
_TIE = 1e-5
"""If the probabilities of two experts differ by less than this, transformers and this framework may select different
experts."""


def written_rows(tensors: Written, name: str, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, rows) for each block of rows of a tensor in the exported folder."""
    file, stored = tensors[name]
    offset = stored.start
    for start, stop in row_blocks(stored.shape, dtype.itemsize):
        rows = torch.empty(stop - start, *stored.shape[1:], dtype=dtype)
        with opened(file) as readable:
            read_rows(readable, offset, dtype, rows)
        offset += rows.nbytes
        yield start, rows


class _Weights:
    """The fp32 weights of both models. Our weights are those of the checkpoint, rounded to the dtype of the export. The
    weights for transformers are those in the exported files."""

    def __init__(self, run: Run, precision: Precision, tensors: Written) -> None:
        self.run, self.dtype, self.tensors = run, FORMATS[precision].torch_dtype, tensors

    def fill_ours(self, module: nn.Module, prefix: str) -> None:
        for name, param in module.named_parameters():
            for start, stop in row_blocks(tuple(param.shape), self.dtype.itemsize):
                rows = torch.empty(stop - start, *param.shape[1:], dtype=self.dtype)
                self.run.source.rows(prefix + name, start, stop, rows)
                param[start:stop].copy_(rows)

    def fill_theirs(self, module: nn.Module, prefix: str) -> None:
        for name, param in module.named_parameters():
            for start, rows in written_rows(self.tensors, prefix + name, self.dtype):
                param[start : start + len(rows)].copy_(rows)


class _Side:
    """A transformer block of one of the two models. Its weights are in memory only while it computes."""

    def __init__(self, block: nn.Module, fill: Callable[[nn.Module, str], None]) -> None:
        self.block, self.fill = block, fill
        self._shapes = {name: param.shape for name, param in block.named_parameters()}
        self._empty()

    @contextlib.contextmanager
    def filled(self, prefix: str) -> Iterator[None]:
        for name, param in self.block.named_parameters():
            param.data = torch.empty(self._shapes[name])
        self.fill(self.block, prefix)
        yield
        self._empty()

    def _empty(self) -> None:
        for param in self.block.parameters():
            param.data = torch.empty(0)


@torch.no_grad()
def check_logits(folder: Path, run: Run, precision: Precision, tensors: Written) -> list[str]:
    """Compare the logits, and return lines that describe what was verified. Raises ConfigError if the logits or the
    output of a block differ.

    In both models, the input of each block is the output of the preceding block of our model, so that differences do
    not accumulate.
    """
    model, weights = _on_cpu(run.config.model), _Weights(run, precision, tensors)
    ids_BS = _fixed_rows(model)
    documents = find_documents(ids_BS, torch.zeros_like(ids_BS), model)
    layout = make_layout(documents, model, torch.float32)
    x_BSD = _embed(weights, model, ids_BS)
    theirs, norm_f = _stock_block(folder)
    ours = _make(lambda: DbrxBlock(model))
    our_side, their_side = _Side(ours, weights.fill_ours), _Side(theirs.blocks[0], weights.fill_theirs)
    worst, tied_BS = 0.0, torch.zeros_like(ids_BS, dtype=torch.bool)
    for layer in range(model.n_layers):
        prefix = f"transformer.blocks.{layer}."
        with our_side.filled(prefix):
            y_BSD, here_BS = _our_block(ours, x_BSD, layout)
        with their_side.filled(prefix):
            stock_BSD = theirs(inputs_embeds=x_BSD, use_cache=False).last_hidden_state
        worst = max(worst, compare(stock_BSD[~here_BS], y_BSD[~here_BS], f"block {layer}"))
        tied_BS |= here_BS
        x_BSD = y_BSD
    logits_BSV = _head(weights, model, x_BSD, None)
    worst = max(worst, compare(_head(weights, model, x_BSD, norm_f), logits_BSV, "the logits"))
    message = f"transformers {transformers.__version__} computes the same values in fp32, block by block"
    lines = [f"{message}: largest relative difference {worst:.0e} on {int((~tied_BS).sum())} tokens"]
    needed = sum(n_bytes(shape, "fp32") for shape in parameter_shapes(model).values())
    if needed < min(WHOLE_BYTES, 0.7 * psutil.virtual_memory().available):
        # Later tokens attend to a token with tied experts, so they are excluded as well.
        clean_BS = tied_BS.cumsum(1) == 0
        whole = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
        apart = compare(whole(ids_BS).logits[clean_BS], logits_BSV[clean_BS], "the whole model's logits")
        lines.append(f"the whole model: largest relative difference {apart:.0e} on {int(clean_BS.sum())} tokens")
    return lines


def _on_cpu(model: ModelConfig) -> ModelConfig:
    """Return the model's config with implementations that run on any machine."""
    attn = dataclasses.replace(model.attn_config, attn_impl="sdpa")
    return dataclasses.replace(
        model, attn_config=attn, ffn_config=dataclasses.replace(model.ffn_config, moe_impl="torch", moe_recompute=False)
    )


def _fixed_rows(model: ModelConfig) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.vocab_size, (_N_ROWS, min(_ROW_LENGTH, model.max_seq_len)), generator=generator)


def _make(build: Any) -> Any:
    with torch.device("meta"):
        module = build()
    return module.to_empty(device="cpu").eval().requires_grad_(False)


def _embed(weights: _Weights, model: ModelConfig, ids_BS: Tensor) -> Tensor:
    wte = _make(lambda: nn.Embedding(model.vocab_size, model.d_model))
    weights.fill_ours(wte, "transformer.wte.")
    return wte(ids_BS)


def _our_block(block: DbrxBlock, x_BSD: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return the output of the block, and a mask [B, S] of the tokens for which two experts are tied."""
    y_TD, stats = block(x_BSD.flatten(0, 1), layout)
    k = block.ffn.router.moe_top_k
    ordered_TE = stats.logits_TE.softmax(-1).sort(-1, descending=True).values
    tied_T = torch.zeros(len(y_TD), dtype=torch.bool)
    if k < ordered_TE.shape[1]:
        tied_T = ordered_TE[:, k - 1] - ordered_TE[:, k] < _TIE
    return y_TD.view_as(x_BSD), tied_T.view(x_BSD.shape[:2])


def _stock_block(folder: Path) -> tuple[Any, nn.Module]:
    """Return a transformers model with one block, a minimal vocabulary and no final norm. The final norm is returned
    separately."""
    config: Any = transformers.AutoConfig.from_pretrained(folder)
    config.n_layers, config.vocab_size, config.pad_token_id = 1, 1, None
    model: Any = transformers.DbrxModel(config).float().eval().requires_grad_(False)
    norm_f, model.norm_f = model.norm_f, nn.Identity()
    return model, norm_f


def _head(weights: _Weights, model: ModelConfig, x_BSD: Tensor, norm_f: nn.Module | None) -> Tensor:
    """Compute the logits from the checkpoint's weights or, if `norm_f` is passed, from the exported files."""
    fill, stock = (weights.fill_ours, False) if norm_f is None else (weights.fill_theirs, True)
    norm = norm_f if norm_f is not None else _make(lambda: nn.LayerNorm(model.d_model, bias=False))
    size = (model.d_model, model.vocab_size)
    head = _make(lambda: nn.Linear(*size, bias=False) if stock else Linear(*size))
    fill(norm, "transformer.norm_f.")
    fill(head, "lm_head.")
    return head(norm(x_BSD).flatten(0, 1)).view(*x_BSD.shape[:2], -1)


def compare(theirs: Tensor, ours: Tensor, where: str) -> float:
    if ours.numel() == 0:
        return 0.0
    # The difference is relative to the largest value of each token: in a trained model, the values of some tokens are
    # thousands of times larger than those of other tokens.
    apart = ((theirs - ours).abs().amax(-1) / ours.abs().amax(-1)).max().item()
    if not apart <= TOLERANCE:  # also true for NaN
        raise ConfigError(
            f"transformers {transformers.__version__} computes different values: {where} differ by {apart:.1e} "
            f"relative to a token's largest value (differences up to {TOLERANCE:.0e} are accepted as rounding errors)"
        )
    return apart
