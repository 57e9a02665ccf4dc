"""The proof that an exported folder is right, from its files alone and with stock transformers.

`python -m train.hf.verify FOLDER --composer_path CHECKPOINT`, in any environment with transformers 4.53 or newer.
Nothing is held in memory beside one block of the model, so that it works for the 132B as well.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from torch import Tensor, nn

from data.errors import ConfigError
from train.hf.config import config_json
from train.hf.export import TORCH_DTYPES, Run, open_run
from train.hf.pretrained import INDEX
from train.hf.raw_rows import read_rows
from train.hf.safetensors_file import Stored, header, read_header
from train.hf.weights import DTYPES, Precision, row_blocks
from train.models.config import ModelConfig
from train.models.dbrx import DbrxBlock
from train.models.layout import Layout, find_documents, make_layout
from train.models.linear import Linear
from train.plan import parameter_shapes

TOLERANCE = 1e-4
"""Of a token's largest number: fp32 rounds to some 1e-6 of it."""
WHOLE_BYTES = 20e9
"""Up to this size in fp32 the model is also computed as a whole."""
_N_ROWS, _ROW_LENGTH = 2, 48
_TIE = 1e-5
"""Two experts whose probabilities are closer than this may be chosen by either side."""


def verify(folder: Path, checkpoint: Path) -> list[str]:
    """What was shown, line by line. Raises ConfigError with the first thing that is wrong, and in which file."""
    run = open_run(checkpoint)
    precision = _check_config(folder, run)
    _check_files(folder, run)
    _check_tokenizer(folder, run)
    tensors = _check_weights(folder, run, precision)
    return [
        f"{len(tensors)} tensors with the names and shapes of stock DBRX, equal to the checkpoint's to the byte",
        "config, tokenizer, ends of text and chat template agree",
        *_check_logits(folder, run, precision, tensors),
    ]


def _wrong(name: str, what: object) -> ConfigError:
    return ConfigError(f"{name} {what}")


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        contents = json.loads((folder / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise _wrong(name, f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise _wrong(name, "is not JSON") from None
    if not isinstance(contents, dict):
        raise _wrong(name, "holds no mapping")
    return contents


def _check_config(folder: Path, run: Run) -> Precision:
    found = _read_json(folder, "config.json")
    precisions: dict[str, Precision] = {dtype: key for key, dtype in TORCH_DTYPES.items()}
    precision = precisions.get(str(found.get("torch_dtype")))
    if precision is None:
        raise _wrong(
            "config.json", f"has torch_dtype {found.get('torch_dtype')}, not {' or '.join(TORCH_DTYPES.values())}"
        )
    expected = json.loads(json.dumps(config_json(run.config.model, run.generation, TORCH_DTYPES[precision])))
    for key in sorted({*found, *expected}):
        if found.get(key, _ABSENT) != expected.get(key, _ABSENT):
            raise _wrong("config.json", f"has {key} {found.get(key)}, but the checkpoint's is {expected.get(key)}")
    return precision


_ABSENT = object()
_BESIDE = ("config.json", INDEX, "README.md", "evaluation.json")
"""What a whole folder may have beside weights and tokenizer."""


def _check_files(folder: Path, run: Run) -> None:
    """The tokenizer's files are those of the run; there is nothing besides that a loader might take up."""
    if not (folder / "README.md").is_file():
        raise _wrong("README.md", "is missing")
    for file in sorted(run.tokenizer.iterdir()):
        if not (folder / file.name).is_file():
            raise _wrong(file.name, "is missing")
        if (folder / file.name).read_bytes() != file.read_bytes():
            raise _wrong(file.name, "is not the one that the run left beside its checkpoints")
    known = {*_weight_map(folder).values(), *_BESIDE, *(file.name for file in run.tokenizer.iterdir())}
    for file in sorted(folder.iterdir()):
        if file.name not in known and not file.name.startswith((".", "LICENSE", "NOTICE")):
            raise _wrong(file.name, "is no part of the export")


def _weight_map(folder: Path) -> dict[str, str]:
    index = _read_json(folder, INDEX)
    if not isinstance(index.get("weight_map"), dict):
        raise _wrong(INDEX, "has no weight_map")
    return index["weight_map"]


def _check_tokenizer(folder: Path, run: Run) -> None:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    config, generation = (
        transformers.AutoConfig.from_pretrained(folder),
        transformers.GenerationConfig.from_pretrained(folder),
    )
    stops = run.generation["eos_token_id"]
    said = {"config.json": config.eos_token_id, "generation_config.json": generation.eos_token_id}
    for name, found in said.items():
        if found != stops:
            raise _wrong(name, f"ends texts at {found}, the checkpoint's tokenizer at {stops}")
    if tokenizer.eos_token_id not in stops:
        raise _wrong("the tokenizer", f"ends texts at {tokenizer.eos_token_id}, generation at {stops}")
    if len(tokenizer) > run.config.model.vocab_size:
        raise _wrong("the tokenizer", f"has {len(tokenizer)} tokens, the model {run.config.model.vocab_size}")
    if tokenizer.chat_template is None:
        return
    words = ("How many legs has a spider?", "Eight.")
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), words, strict=True)]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # whatever the template raises, and jinja's own
        raise _wrong("the chat template", f"does not render {messages}: {error}") from None
    if not all(word in text for word in words):
        raise _wrong("the chat template", f"renders {messages} as {text!r}")


def _check_weights(folder: Path, run: Run, precision: Precision) -> dict[str, tuple[Path, Stored]]:
    """Index, headers, names and shapes, and every byte."""
    shapes, weight_map, dtype = parameter_shapes(run.config.model), _weight_map(folder), DTYPES[precision][0]
    stock = _stock_shapes(folder)
    if stock != shapes:
        differ = sorted(name for name in {*stock, *shapes} if stock.get(name) != shapes.get(name))
        raise _wrong("config.json", f"makes transformers expect other tensors, such as {differ[0]}")
    if list(weight_map) != list(shapes):
        raise _wrong(INDEX, f"does not name the tensors of DBRX: {sorted({*weight_map} ^ {*shapes})[:3]}")
    tensors: dict[str, tuple[Path, Stored]] = {}
    for file in dict.fromkeys(folder / name for name in weight_map.values()):
        inside = {name: shapes[name] for name, place in weight_map.items() if place == file.name}
        begin = header(inside, DTYPES[precision][1])
        try:
            tensors |= {name: (file, stored) for name, stored in read_header(file).items()}
            with file.open("rb") as stream:
                same = stream.read(len(begin)) == begin
        except OSError as error:
            raise _wrong(file.name, f"cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if not same:
            raise _wrong(file.name, "has another header than the tensors that the index puts there need")
    total = sum(stored.stop - stored.start for _, stored in tensors.values())
    if _read_json(folder, INDEX).get("metadata") != {"total_size": total}:
        raise _wrong(INDEX, f"does not say that there are {total} bytes")
    for name, (file, _) in tensors.items():
        for start, rows in _rows(tensors, name, dtype):
            expected = torch.empty_like(rows)
            run.source.rows(name, start, start + len(rows), expected)
            if not torch.equal(expected.view(torch.uint8), rows.view(torch.uint8)):
                raise _wrong(
                    file.name, f"holds another {name} than the checkpoint, in rows {start} to {start + len(rows)}"
                )
    return tensors


def _rows(tensors: Mapping[str, tuple[Path, Stored]], name: str, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of what is written, block by block."""
    file, stored = tensors[name]
    offset = stored.start
    for start, stop in row_blocks(stored.shape, dtype.itemsize):
        rows = torch.empty(stop - start, *stored.shape[1:], dtype=dtype)
        read_rows(file, offset, dtype, rows)
        offset += rows.nbytes
        yield start, rows


def _stock_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        stock = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    return {name: tuple(tensor.shape) for name, tensor in stock.state_dict().items()}


class _Weights:
    """Both sides' weights, in fp32: the checkpoint's, rounded as the export is, and the files'."""

    def __init__(self, run: Run, precision: Precision, tensors: Mapping[str, tuple[Path, Stored]]) -> None:
        self.run, self.dtype, self.tensors = run, DTYPES[precision][0], tensors

    def fill_ours(self, module: nn.Module, prefix: str) -> None:
        for name, param in module.named_parameters():
            for start, stop in row_blocks(tuple(param.shape), self.dtype.itemsize):
                rows = torch.empty(stop - start, *param.shape[1:], dtype=self.dtype)
                self.run.source.rows(prefix + name, start, stop, rows)
                param[start:stop].copy_(rows)

    def fill_theirs(self, module: nn.Module, prefix: str) -> None:
        for name, param in module.named_parameters():
            for start, rows in _rows(self.tensors, prefix + name, self.dtype):
                param[start : start + len(rows)].copy_(rows)


class _Side:
    """One side's block, whose weights are there only while it computes."""

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
def _check_logits(
    folder: Path, run: Run, precision: Precision, tensors: Mapping[str, tuple[Path, Stored]]
) -> list[str]:
    """Each block of either side gets what our blocks before it gave, so that nothing adds up on the way."""
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
        worst = max(worst, _compare(stock_BSD[~here_BS], y_BSD[~here_BS], f"block {layer}"))
        tied_BS |= here_BS
        x_BSD = y_BSD
    logits_BSV = _head(weights, model, x_BSD, None)
    worst = max(worst, _compare(_head(weights, model, x_BSD, norm_f), logits_BSV, "the logits"))
    said = f"transformers {transformers.__version__} computes the same in fp32, block by block"
    lines = [f"{said}: {worst:.0e} of a token's largest number apart on {int((~tied_BS).sum())} tokens"]
    needed = 4 * sum(torch.Size(shape).numel() for shape in parameter_shapes(model).values())
    if needed < min(WHOLE_BYTES, 0.7 * psutil.virtual_memory().available):
        # What follows a token that may go elsewhere has seen it.
        clean_BS = tied_BS.cumsum(1) == 0
        whole = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
        apart = _compare(whole(ids_BS).logits[clean_BS], logits_BSV[clean_BS], "the whole model's logits")
        lines.append(f"the whole model at once: {apart:.0e} apart on {int(clean_BS.sum())} tokens")
    return lines


def _on_cpu(model: ModelConfig) -> ModelConfig:
    """Computed by what is everywhere."""
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
    """What the block makes of it, and which tokens stand between two experts [B, S]."""
    y_TD, stats = block(x_BSD.flatten(0, 1), layout)
    k = block.ffn.router.moe_top_k
    ordered_TE = stats.logits_TE.softmax(-1).sort(-1, descending=True).values
    tied_T = torch.zeros(len(y_TD), dtype=torch.bool)
    if k < ordered_TE.shape[1]:
        tied_T = ordered_TE[:, k - 1] - ordered_TE[:, k] < _TIE
    return y_TD.view_as(x_BSD), tied_T.view(x_BSD.shape[:2])


def _stock_block(folder: Path) -> tuple[Any, nn.Module]:
    """transformers' own model of one block and nearly no vocabulary, without its last norm; and that norm."""
    config: Any = transformers.AutoConfig.from_pretrained(folder)
    config.n_layers, config.vocab_size, config.pad_token_id = 1, 1, None
    model: Any = transformers.DbrxModel(config).float().eval().requires_grad_(False)
    norm_f, model.norm_f = model.norm_f, nn.Identity()
    return model, norm_f


def _head(weights: _Weights, model: ModelConfig, x_BSD: Tensor, norm_f: nn.Module | None) -> Tensor:
    """Ours, or with transformers' norm the files'."""
    fill, stock = (weights.fill_ours, False) if norm_f is None else (weights.fill_theirs, True)
    norm = norm_f if norm_f is not None else _make(lambda: nn.LayerNorm(model.d_model, bias=False))
    size = (model.d_model, model.vocab_size)
    head = _make(lambda: nn.Linear(*size, bias=False) if stock else Linear(*size))
    fill(norm, "transformer.norm_f.")
    fill(head, "lm_head.")
    return head(norm(x_BSD).flatten(0, 1)).view(*x_BSD.shape[:2], -1)


def _compare(theirs: Tensor, ours: Tensor, where: str) -> float:
    if ours.numel() == 0:
        return 0.0
    # Token by token: some of a trained model's have numbers thousands of times those of the others.
    apart = ((theirs - ours).abs().amax(-1) / ours.abs().amax(-1)).max().item()
    if not apart <= TOLERANCE:  # NaN too
        raise ConfigError(
            f"transformers {transformers.__version__} computes something else: {where} are {apart:.1e} of a token's "
            f"largest number apart (at most {TOLERANCE:.0e} is rounding)"
        )
    return apart


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.hf.verify", description=__doc__)
    parser.add_argument("folder", type=Path, help="the exported folder")
    what = "the checkpoint that it was exported from, in its save folder"
    parser.add_argument("--composer_path", type=Path, required=True, help=what)
    args = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    try:
        for line in verify(args.folder, args.composer_path):
            print(f"verified: {line}", flush=True)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
