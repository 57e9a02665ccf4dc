"""A small random DBRX with the quickstart's tokenizer, as a run's save folder and as an export."""

import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from data.config.tokenizer import TokenizerConfig, TokenizerKwargs
from data.tokenization.build import build_tokenizer
from tests.helpers.committed import commit
from train.checkpoint.reader import PREFIX
from train.export.export import export
from train.models.config import AttnConfig, FFNConfig, ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.init import initialise

ROOT = Path(__file__).resolve().parents[2]


MODEL = ModelConfig(
    d_model=32,
    n_heads=4,
    n_layers=2,
    max_seq_len=64,
    vocab_size=274,
    initializer_range=0.2,
    attn_config=AttnConfig(kv_n_heads=2, clip_qkv=0.5, rope_theta=500.0),
    ffn_config=FFNConfig(ffn_hidden_size=24, moe_num_experts=8, moe_top_k=3),
)


CONFIG = """\
max_seq_len: 64
model:
  {d_model: 32, n_heads: 4, n_layers: 2, max_seq_len: 64, vocab_size: 274, initializer_range: 0.2,
   attn_config: {kv_n_heads: 2, clip_qkv: 0.5, rope_theta: 500.0},
   ffn_config: {ffn_hidden_size: 24, moe_num_experts: 8, moe_top_k: 3}}
tokenizer: {name: tiktoken, kwargs: {vocab_file: quickstart/vocab.tiktoken}}
train_loader: {name: finetuning, dataset: {hf_name: json, max_seq_len: 64}}
optimizer: {name: adamw, lr: 1.0e-3}
scheduler: {name: constant_with_warmup}
max_duration: 10ba
global_train_batch_size: 2
"""


def write_run(folder: Path) -> DbrxForCausalLM:
    """Write config.yaml, tokenizer/ and ep0-ba10. Returns the model in the checkpoint."""
    model = DbrxForCausalLM(MODEL)
    initialise(model, MODEL, seed=3)
    write_save_folder(folder)
    save_checkpoint(folder / "ep0-ba10", model.state_dict())
    return model.eval()


def write_save_folder(folder: Path) -> None:
    """Write config.yaml and tokenizer/."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    vocab = TokenizerKwargs(vocab_file=str(ROOT / "quickstart" / "vocab.tiktoken"))
    build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=vocab)).save_pretrained(folder / "tokenizer", 64)


def write_export(run: Path, folder: Path) -> Path:
    export(run / "ep0-ba10", folder, "fp32")
    return folder


def save_checkpoint(folder, tensors):
    """Write a checkpoint that also contains some state of a run."""
    state = {PREFIX + name: tensor for name, tensor in tensors.items()}
    state |= {
        "state.optimizers.AdamW.state.model.transformer.wte.weight.exp_avg": torch.ones(3),
        "state.timestamp": b"x",
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    commit(folder)
