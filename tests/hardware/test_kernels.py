"""The implementations of experts and attention are chosen before the first step, and printed with the reasons."""

import pytest
import torch

from data.base.errors import ConfigError
from tests.helpers.small_config import load
from train.hardware.kernels import choose_kernels
from train.models.attention import layout
from train.models.experts import grouped_mm as experts_grouped_mm
from train.models.experts import megablocks as experts_megablocks

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NOT_INSTALLED = "MegaBlocks is not installed: run scripts/dev/build_megablocks.sh"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H100 that has only torch's grouped GEMM."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(experts_grouped_mm, "_grouped_mm", torch.mm)
    monkeypatch.setattr(experts_megablocks, "_import", lambda: NOT_INSTALLED)
    monkeypatch.setattr(layout, "_flash_import_error", lambda: "the package flash-attn is not installed")


def test_on_a_cpu_nothing_is_missing(tmp_path) -> None:
    model, lines = choose_kernels(load(tmp_path), 1, CPU, torch.float32)
    assert lines == ["experts: torch", "attention: blocks"]
    assert model.ffn_config.moe_impl == "torch"
    _, lines = choose_kernels(load(tmp_path, "model.attn_config.attn_pdrop=0.1"), 1, CPU, torch.float32)
    assert lines[1] == "attention: sdpa (not blocks: blocks does not support dropout, and attn_pdrop is not 0)"


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_what_would_be_better_is_listed(tmp_path) -> None:
    model, lines = choose_kernels(load(tmp_path, "model.preset=9b"), 1, CUDA, torch.bfloat16)
    assert lines == [
        f"experts: grouped_mm (not megablocks: {NOT_INSTALLED})",
        "attention: sdpa (not flash: the package flash-attn is not installed)",
    ]
    assert model.ffn_config.moe_impl == "grouped_mm"


@pytest.mark.usefixtures("gpu")
def test_configured_kernels_are_used_or_rejected(tmp_path) -> None:
    chosen = ["model.ffn_config.moe_impl=torch", "model.attn_config.attn_impl=sdpa"]
    _, lines = choose_kernels(load(tmp_path, "model.preset=9b", *chosen), 1, CUDA, torch.float32)
    assert lines == ["experts: torch, as configured", "attention: sdpa, as configured"]
    with pytest.raises(ConfigError, match=f"model.ffn_config.moe_impl is megablocks, but {NOT_INSTALLED}"):
        choose_kernels(load(tmp_path, "model.ffn_config.moe_impl=megablocks"), 1, CUDA, torch.bfloat16)


@pytest.mark.usefixtures("gpu")
def test_kernels_that_are_not_requested_are_not_imported(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, probe in ((experts_megablocks, "_import"), (layout, "_flash_import_error")):
        monkeypatch.setattr(module, probe, lambda: pytest.fail("a package was imported that was not requested"))
    chosen = ["model.ffn_config.moe_impl=torch", "model.attn_config.attn_impl=sdpa"]
    _, lines = choose_kernels(load(tmp_path, *chosen), 1, CUDA, torch.bfloat16)
    assert lines == ["experts: torch, as configured", "attention: sdpa, as configured"]


def test_a_kernel_that_needs_bf16_is_rejected_with_that_fix(tmp_path, gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts_megablocks, "_import", lambda: (None, None))
    config = load(tmp_path, "model.ffn_config.moe_impl=megablocks")
    with pytest.raises(ConfigError, match=r"only bfloat16, not torch.float32; .*; or set precision: amp_bf16$"):
        choose_kernels(config, 1, CUDA, torch.float32)
    with pytest.raises(ConfigError, match=r"requires a GPU, and this device is cpu; auto selects an available"):
        choose_kernels(config, 1, CPU, torch.float32)


@pytest.mark.usefixtures("gpu")
def test_auto_does_not_take_the_loop_for_a_large_model_on_a_gpu(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"^model\.ffn_config\.moe_impl is auto, but only the loop") as caught:
        choose_kernels(load(tmp_path, "model.preset=9b"), 1, CUDA, torch.float32)
    for part in (NOT_INSTALLED, "on a GPU supports only bfloat16", ": set precision: amp_bf16, ", "moe_impl=torch"):
        assert part in str(caught.value)
    model, _ = choose_kernels(load(tmp_path), 1, CUDA, torch.float32)
    assert model.ffn_config.moe_impl == "torch"


@pytest.mark.usefixtures("gpu")
def test_bf16_is_suggested_only_where_it_helps(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ConfigError, match=r"8\.0 or higher\): fix one of these problems, or set model\.ffn_config"):
        choose_kernels(load(tmp_path, "model.preset=9b"), 1, CUDA, torch.float32)


def test_megablocks_is_chosen_for_the_largest_microbatch(tmp_path, gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts_megablocks, "_import", lambda: (None, None))
    config = load(tmp_path, "model.preset=132b", "max_seq_len=32768", "global_train_batch_size=4")
    assert choose_kernels(config, 1, CUDA, torch.bfloat16)[0].ffn_config.moe_impl == "megablocks"
    config = load(tmp_path, "model.preset=132b", "max_seq_len=32768", "device_train_microbatch_size=4")
    model, lines = choose_kernels(config, 1, CUDA, torch.bfloat16)
    assert model.ffn_config.moe_impl == "grouped_mm"
    assert "131,072 tokens x 4 experts per token x d_model 6,144 is 3,221,225,472" in lines[0]
    # With expert parallelism, the 8 ranks may send one rank 2.7 times the average number of tokens or more.
    config = load(tmp_path, "model.preset=132b", "max_seq_len=32768", "fsdp_config.expert_parallel_degree=8")
    model, lines = choose_kernels(config, 8, CUDA, torch.bfloat16)
    assert model.ffn_config.moe_impl == "grouped_mm"
    assert "262,144 tokens x 2 experts per token x d_model 6,144 is 3,221,225,472" in lines[0]
