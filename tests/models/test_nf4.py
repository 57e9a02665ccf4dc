"""The frozen base in 4 bits: rounded like bitsandbytes, split at any row, and computed like unpacked weights."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from data.base.errors import ConfigError
from tests.helpers.ranks import run_ranks
from tests.helpers.small_config import load, refusal
from train.config.schema import FSDPConfig
from train.models.config import AttnConfig, FFNConfig, LoraConfig, ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.init import initialise
from train.models.lora.adapters import add_lora, is_adapter
from train.models.lora.nf4 import pack, pack_parameters, unpack

MODEL = ModelConfig(
    d_model=64,
    n_heads=4,
    n_layers=2,
    max_seq_len=32,
    vocab_size=48,
    attn_config=AttnConfig(kv_n_heads=2),
    ffn_config=FFNConfig(ffn_hidden_size=24, moe_num_experts=4, moe_top_k=2),
    initializer_range=0.2,
)
LORA = LoraConfig(r=3, alpha=5.0, target_modules=["attn", "experts"], base_dtype="nf4")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_can_be_split_anywhere_and_equal_bitsandbytes(dtype: torch.dtype) -> None:
    import bitsandbytes.functional as bnb

    weight = torch.randn(37, 128)
    expected = bnb.dequantize_4bit(*bnb.quantize_4bit(weight.flatten(), blocksize=64, quant_type="nf4")).view(37, 128)
    packed = pack(weight, dtype)
    assert packed.dtype is dtype
    assert packed.numel() * packed.element_size() == weight.numel() * 36 // 64
    assert torch.equal(unpack(packed, torch.float32), expected)
    assert torch.equal(unpack(packed[5:9], torch.float32), expected[5:9])
    assert torch.equal(pack(weight[5:9], dtype).view(torch.uint8), packed[5:9].view(torch.uint8))


def ids() -> Tensor:
    return torch.randint(0, 48, (4, 16), generator=torch.Generator().manual_seed(0))


def fill_adapters(model: DbrxForCausalLM) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, param in model.named_parameters():
        if is_adapter(name):
            nn.init.normal_(param, std=0.2, generator=generator)


def gradients(model: DbrxForCausalLM) -> dict[str, Tensor]:
    loss = model(ids(), ids().roll(-1, 1)).losses_BS.mean()
    loss.backward()
    grads = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
    return {"loss": loss.detach(), **grads}


@pytest.mark.parametrize("targets", [["attn", "experts"], ["attn"]], ids=str)
@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
def test_packed_weights_compute_the_same_as_unpacked_ones(targets: list[str], recompute: bool) -> None:
    config = replace(MODEL, ffn_config=replace(MODEL.ffn_config, moe_recompute=recompute))
    lora = replace(LORA, target_modules=targets)
    plain = DbrxForCausalLM(config)
    initialise(plain, config, seed=0)
    packed = DbrxForCausalLM(config)
    pack_parameters(packed, torch.float32)
    for param, ours in zip(plain.parameters(), packed.parameters(), strict=True):
        with torch.no_grad():
            if ours.shape != param.shape:
                ours.copy_(pack(param, torch.float32))
                param.copy_(unpack(ours, torch.float32))
            else:
                ours.copy_(param)
    add_lora(plain, replace(lora, base_dtype="fp32"))
    add_lora(packed, lora)
    fill_adapters(plain)
    fill_adapters(packed)
    expected, got = gradients(plain), gradients(packed)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()), msg=name)


def kept_bytes(base_dtype: str) -> int:
    model = DbrxForCausalLM(MODEL)
    if base_dtype == "nf4":
        pack_parameters(model, torch.float32)
    for param in model.parameters():
        nn.init.zeros_(param)
    add_lora(model, replace(LORA, base_dtype=base_dtype, target_modules=["out_proj"]))  # type: ignore[arg-type]
    fill_adapters(model)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids(), ids().roll(-1, 1))
    params = {param.untyped_storage().data_ptr() for param in model.parameters()}
    return sum(n_bytes for place, n_bytes in kept.items() if place not in params)


def test_unpacked_weights_are_not_kept() -> None:
    assert kept_bytes("nf4") <= kept_bytes("fp32")


def sharded(policy: str) -> dict[str, Tensor]:
    import torch.distributed as dist
    from composer.utils import dist as composer_dist
    from composer.utils import get_device

    from train.distributed.build_model import build_model
    from train.models.recompute import named_parameters

    composer_dist.initialize_dist(get_device("cpu"), timeout=60)
    fsdp = FSDPConfig(activation_checkpointing=policy)  # type: ignore[arg-type]
    model = build_model(MODEL, fsdp, precision="fp32", device=torch.device("cpu"), seed=3, lora=LORA)
    mine = ids().chunk(dist.get_world_size())[dist.get_rank()]
    out = model(mine, mine.roll(-1, 1))
    out.losses_BS.mean().backward()
    whole: dict[str, Tensor] = {"losses": out.losses_BS.detach()}
    for name, param in named_parameters(model):
        tensor = param if param.grad is None else param.grad
        assert isinstance(tensor, DTensor)
        whole[name] = tensor.full_tensor().detach().clone()
    return whole


@pytest.mark.ranks
@pytest.mark.timeout(240)
def test_two_ranks_pack_the_same_bytes_and_get_the_gradients_of_one() -> None:
    one, two = run_ranks(sharded, 1, "none")[0], run_ranks(sharded, 2, "block")
    torch.testing.assert_close(torch.cat([rank["losses"] for rank in two]), one["losses"])
    assert len(one) == len(two[0])
    for name, expected in one.items():
        if is_adapter(name):
            torch.testing.assert_close(two[0][name], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        elif name != "losses":
            assert torch.equal(two[0][name].view(torch.uint8), expected.view(torch.uint8)), name


def test_rows_of_another_width_are_refused(tmp_path) -> None:
    lora = "lora={r: 4, alpha: 8, target_modules: [experts], base_dtype: nf4}"
    assert load(tmp_path, lora).lora is not None
    assert "lora.base_dtype is nf4, which packs blocks of 64 values" in refusal(tmp_path, lora, "model.d_model=48")


def test_missing_requirements_of_nf4_are_reported(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.run.model import check_lora

    config = load(tmp_path, "lora={r: 4, alpha: 8, target_modules: [experts], base_dtype: nf4}")
    check_lora(config, torch.device("cpu"), "torch")
    with pytest.raises(
        ConfigError, match=r"lora\.r is 4, but the grouped GEMMs of grouped_mm require rows of a multiple of 16 bytes"
    ):
        check_lora(config, torch.device("cuda"), "grouped_mm")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"bitsandbytes is not installed: pip install -e '\.\[nf4\]'"):
        check_lora(config, torch.device("cpu"), "torch")
