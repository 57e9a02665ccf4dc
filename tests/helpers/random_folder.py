"""A random DBRX folder of any size, written a few rows at a time, and the memory that a rank needs to import it."""

import re
from pathlib import Path

import torch
import torch.distributed as dist

from train.config.schema import FSDPConfig
from train.distributed.build_model import build_model
from train.export.writer import write_weights
from train.hf.config_json import config_json
from train.hf.repository import write_json
from train.models.config import AttnConfig, FFNConfig, ModelConfig
from train.models.precision import Precision
from train.models.shapes import parameter_shapes
from train.weights.pretrained import PretrainedFolder


def model_of(n_bytes: float, d_model: int, vocab_size: int = 512) -> ModelConfig:
    """Return the config of a model with about this many bytes in fp32."""
    ffn = FFNConfig(ffn_hidden_size=d_model * 7 // 4, moe_num_experts=8, moe_top_k=2)
    attn = AttnConfig(kv_n_heads=2, clip_qkv=8.0, rope_theta=1e4)

    def sized(n_layers: int) -> ModelConfig:
        return ModelConfig(
            d_model=d_model,
            n_heads=8,
            n_layers=n_layers,
            max_seq_len=128,
            vocab_size=vocab_size,
            attn_config=attn,
            ffn_config=ffn,
        )

    layer = sum(torch.Size(s).numel() for name, s in parameter_shapes(sized(1)).items() if ".blocks.0." in name)
    return sized(max(1, round(n_bytes / 4 / layer)))


class _Random:
    files = ()

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def pieces(self, name: str, dtype: torch.dtype) -> None:
        return None

    def rows(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        # 1 in norms, so that activations of a deep model neither explode nor vanish.
        out.fill_(1.0) if "norm" in name.rsplit(".", 2)[-2] else out.normal_(0.0, 0.02)


def write_random_folder(folder: Path, model: ModelConfig, precision: Precision = "fp32") -> None:
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    shapes = parameter_shapes(model)
    write_weights(_Random(shapes), folder, shapes, precision, max_shard_bytes=500_000_000)
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    write_json(folder / "config.json", config_json(model, {"bos_token_id": 0, "eos_token_id": 0}, dtype))


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def import_on_a_rank(folder: str, ids: torch.Tensor, labels: torch.Tensor) -> tuple[int, int, float]:
    """Return the increase of the rank's peak memory during the import in bytes, the bytes of its shard, and the loss on
    the rows. Mapped files of libraries do not count, because ranks share them, and because the file system decides how
    much of a file is loaded with each page (here 2 to 31 MB of torch's code)."""
    dist.init_process_group("gloo")
    dist.barrier()
    opened = PretrainedFolder.open(folder)
    before, of_files = _status("VmRSS"), _status("RssFile")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    model = build_model(
        opened.model, FSDPConfig(), precision="fp32", device=torch.device("cpu"), seed=1, pretrained=opened
    ).eval()
    peak = _status("VmHWM") - before - (_status("RssFile") - of_files)
    shard = sum(param.to_local().nbytes for param in model.parameters())
    with torch.no_grad():
        losses_BS = model(ids, labels).losses_BS
    dist.barrier()
    return peak, shard, losses_BS.mean().item()
