"""Weights of stock folders: what is read, by which rank, and how defects of a folder are reported."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.base.errors import ConfigError
from data.base.paths import shown
from tests.helpers.ranks import run_ranks
from tests.helpers.small_config import load, refusal
from tests.helpers.stock_folder import SHAPE, make_stock_model, write_stock_folder
from train.config.load import load_saved_config, to_yaml
from train.config.schema import FSDPConfig
from train.distributed.build_model import build_model
from train.hf.repository import read_values
from train.models.config import ModelConfig
from train.weights.pretrained import PretrainedFolder

FIELD = "model.pretrained_model_name_or_path"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_stock_folder(tmp_path / "stock")
    return tmp_path / "stock"


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        PretrainedFolder.open(str(folder))
    assert str(caught.value).startswith(f"{FIELD} is {str(folder)!r}, but ")
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_those_of_the_files(tmp_path: Path, dtype: torch.dtype) -> None:
    stock = write_stock_folder(tmp_path / "stock", dtype)
    opened = PretrainedFolder.open(str(tmp_path / "stock"))
    for name, expected in stock.state_dict().items():
        start, stop = len(expected) // 3, len(expected) - 1
        out = torch.full((stop - start, *expected.shape[1:]), torch.nan)
        opened.rows(name, start, stop, out)
        assert torch.equal(out, expected[start:stop].float()), name


def test_rows_are_read_in_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.hf.raw_rows.PIECE_BYTES", 7 * 32 * 4)
    stock, out = make_stock_model(), torch.empty(97, 32)
    PretrainedFolder.open(str(folder)).rows("lm_head.weight", 0, 97, out)
    assert torch.equal(out, stock.lm_head.weight)


def _loss_on_a_rank(folder: str, ids: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    opened = PretrainedFolder.open(folder)
    model = build_model(
        opened.model, FSDPConfig(), precision="fp32", device=torch.device("cpu"), seed=1, pretrained=opened
    ).eval()
    numel = sum(param.to_local().numel() for param in model.parameters())
    with torch.no_grad():
        losses = model(ids, labels).losses_BS
    dist.barrier()
    return losses.mean().item(), numel


@pytest.mark.ranks
def test_the_loss_after_an_import_equals_that_of_transformers(folder: Path) -> None:
    ids, labels = torch.randint(0, 97, (2, 3, 40), generator=torch.Generator().manual_seed(1))
    stock = make_stock_model()
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(stock(ids).logits.flatten(0, 1), labels.flatten()).item()
    ranks = run_ranks(_loss_on_a_rank, 2, str(folder), ids, labels)
    assert [loss for loss, _ in ranks] == pytest.approx([expected] * 2, rel=1e-5)
    assert sum(numel for _, numel in ranks) == sum(param.numel() for param in stock.parameters())


def test_the_architecture_is_taken_from_the_folder(tmp_path: Path, folder: Path) -> None:
    model = load(tmp_path, f"model={{pretrained_model_name_or_path: {folder}, resid_pdrop: 0.1}}").model
    assert (model.d_model, model.n_layers, model.vocab_size, model.max_seq_len) == (32, 2, 97, 64)
    assert (model.attn_config.kv_n_heads, model.attn_config.clip_qkv, model.attn_config.rope_theta) == (2, 0.5, 500.0)
    assert (model.ffn_config.moe_num_experts, model.ffn_config.moe_top_k) == (5, 2)
    assert model.resid_pdrop == 0.1
    assert model.pretrained_model_name_or_path == str(folder)


def test_contradicting_keys_are_reported_together_with_both_values(tmp_path: Path, folder: Path) -> None:
    keys = f"pretrained_model_name_or_path: {folder}, n_layers: 3, ffn_config: {{moe_top_k: 1}}, max_seq_len: 65"
    there = f"in {folder / 'config.json'}: remove the key, or use other weights"
    assert refusal(tmp_path, f"model={{{keys}}}").splitlines() == [
        "small.yaml: 3 problems",
        f"  small.yaml: model.n_layers is 3, but 2 {there}",
        f"  small.yaml: model.ffn_config.moe_top_k is 1, but 2 {there}",
        f"  small.yaml: model.max_seq_len is 65, but 64 {there}",
    ]


def test_a_preset_must_match_the_weights(tmp_path: Path) -> None:
    tiny = ModelConfig()  # for values that the preset tiny does not set
    shape = {"d_model": 64, "n_layers": 2, "vocab_size": 512, "max_seq_len": 512}
    attn = {"kv_n_heads": 2, "rope_theta": 500.0, "clip_qkv": tiny.attn_config.clip_qkv}
    ffn = {"ffn_hidden_size": 64, "moe_num_experts": 16, "moe_top_k": 4}
    write_stock_folder(tmp_path / "stock", **shape, attn_config=attn, ffn_config=ffn)
    named = f"model.pretrained_model_name_or_path={tmp_path / 'stock'}"
    assert load(tmp_path, named).model.preset == "tiny"
    message = refusal(tmp_path, named, "model.preset=9b")
    assert "d_model is 2048 in preset 9b, but 64 in " in message
    assert "n_layers is 24 in preset 9b, but 2 in " in message
    assert load(tmp_path, named, "model.max_seq_len=100").model.max_seq_len == 100


def test_a_saved_config_is_read_without_the_folder(tmp_path: Path, folder: Path) -> None:
    config = load(tmp_path, f"model={{pretrained_model_name_or_path: {folder}}}")
    (tmp_path / "saved.yaml").write_text(to_yaml(config))
    assert load(tmp_path, text=to_yaml(config)) == config
    folder.rename(tmp_path / "elsewhere")
    assert load_saved_config(tmp_path / "saved.yaml") == config
    assert f"{FIELD} is {str(folder)!r}, but this folder does not exist" in refusal(tmp_path, text=to_yaml(config))


def test_a_saved_config_names_the_absolute_path_of_the_folder(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    config = load(tmp_path, f"model={{pretrained_model_name_or_path: {folder.name}}}")
    (tmp_path / "saved.yaml").write_text(to_yaml(config))
    monkeypatch.chdir("/")
    saved = load_saved_config(tmp_path / "saved.yaml").model
    assert saved.pretrained_model_name_or_path == str(folder)
    assert PretrainedFolder.open(str(folder), saved).folder == folder


def test_pretrained_true_needs_a_name(tmp_path: Path) -> None:
    assert "no weights are specified: set model.pretrained_model_name" in refusal(tmp_path, "model.pretrained=true")


def change_config(folder: Path, **changes: object) -> None:
    contents = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        contents[key] = contents[key] | value if isinstance(value, dict) and key in contents else value
    (folder / "config.json").write_text(json.dumps(contents))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral"}, "its model_type is mixtral, but only dbrx is supported"),
        ({"rope_parameters": [1]}, "its rope_parameters is [1], but it must be a mapping"),
        ({"ffn_config": {"ffn_act_fn": "silu"}}, "its ffn_act_fn is 'silu', but it must be a mapping"),
        (
            {"attn_config": {"rope_theta": [5]}, "rope_parameters": None},
            "config.json is not valid: attn_config.rope_theta is",
        ),
        ({"n_layers": 2.0}, "its config.json is not valid: n_layers is"),
        ({"tie_word_embeddings": True}, "DBRX's head has separate weights"),
        ({"quantization_config": {}}, "its weights are quantized"),
        ({"ffn_config": {"ffn_act_fn": {"name": "gelu"}}}, "ffn_act_fn is gelu, but only silu is supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "its rope_type is yarn"),
        ({"rope_parameters": {"rope_theta": 7.0}}, "rope_theta is 500.0, but its rope_parameters.rope_theta is 7.0"),
        ({"attn_config": 3}, "its attn_config is 3, but it must be a mapping"),
        ({"n_heads": 5}, "config.json is not valid: 2 problems\n  d_model is 32, but it must be divisible by n_heads"),
        ({"n_heads": "x"}, "config.json is not valid: "),
    ],
)
def test_other_architectures_are_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    change_config(folder, **changes)
    assert message in refused(folder)


def test_the_config_of_transformers_5(folder: Path) -> None:
    contents = json.loads((folder / "config.json").read_text())
    del contents["attn_config"]["rope_theta"]
    contents["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0}
    (folder / "config.json").write_text(json.dumps(contents))
    assert read_values(str(folder))[0]["attn_config"]["rope_theta"] == SHAPE["attn_config"]["rope_theta"]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def rewrite(folder: Path, change) -> None:
    """Apply the change to the tensors of each file and to the index."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in shards(folder):
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_missing_extra_and_misshapen_tensors_are_named(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        if tensors.pop("lm_head.weight", None) is not None:
            tensors["extra.bias"] = torch.zeros(2)
            tensors["transformer.norm_f.weight"] = torch.zeros(33)

    rewrite(folder, change)
    message = refused(folder)
    assert "its weights are not those of a standard DBRX model (" in message
    for problem in (
        "lm_head.weight is missing",
        "extra.bias is not a parameter of DBRX",
        "norm_f.weight is [33], expected [32]",
    ):
        assert problem in message


def test_at_most_ten_tensors_are_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: [tensors.update({f"{name}x": tensors.pop(name)}) for name in list(tensors)])
    message = refused(folder)
    assert message.count(" is missing") == 10
    assert message.endswith("(and 28 more)): use the weights of a standard DBRX model, or export these weights again")


def test_a_wrong_dtype_is_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({name: tensor.double() for name, tensor in tensors.items()}))
    assert "transformer.wte.weight is F64, expected F32, BF16 or F16" in refused(folder)


def test_truncated_and_missing_files_are_named(folder: Path) -> None:
    first, second, *_ = shards(folder)
    os.truncate(first, first.stat().st_size - 1)
    second.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    message = refused(folder)
    assert "some files cannot be read: model-00001-of-" in message
    assert f"{first.name} is truncated: it has " in message
    assert f"{second.name} is a Git LFS pointer, not the file itself: run `git lfs pull`" in message
    os.truncate(first, 4)
    second.unlink()
    message = refused(folder)
    assert f"{first.name} is not a safetensors file (4 bytes)" in message
    assert f"{second.name} is missing" in message
    assert message.endswith(": download or copy them again")


def test_a_truncated_header_is_reported(folder: Path) -> None:
    os.truncate(shards(folder)[0], 20)
    assert "is truncated: it has 20 bytes, but its header ends at byte" in refused(folder)


def test_a_file_that_is_truncated_while_it_is_read_is_reported(folder: Path) -> None:
    opened = PretrainedFolder.open(str(folder))
    path, _ = opened.tensors["transformer.wte.weight"]
    os.truncate(path, 3000)
    with pytest.raises(ConfigError, match="is truncated"):
        opened.rows("transformer.wte.weight", 0, 97, torch.empty(97, 32))


def test_an_index_that_does_not_match_the_files_is_reported(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    contents = json.loads(index.read_text())
    contents["weight_map"]["transformer.wte.weight"] = shards(folder)[-1].name
    index.write_text(json.dumps(contents))
    assert f"wte.weight is in {shards(folder)[0].name}, but the index lists {shards(folder)[-1].name}" in refused(
        folder
    )
    index.write_text("{}")
    assert refused(folder).endswith("its model.safetensors.index.json is damaged: download or copy it again")
    index.unlink()
    message = refused(folder)
    assert "safetensors files, but no model.safetensors.index.json" in message
    assert message.endswith(": download or copy the index too")


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b", "..", "", "a\0b", "x" * 5000])
def test_an_index_that_names_files_outside_of_the_folder_is_refused(folder: Path, name: str) -> None:
    index = folder / "model.safetensors.index.json"
    contents = json.loads(index.read_text())
    shutil.copy(shards(folder)[0], folder.parent / "x.safetensors")
    contents["weight_map"]["transformer.wte.weight"] = name
    index.write_text(json.dumps(contents))
    assert f"its {index.name} lists {shown(name)}, which is not a file of the folder" in refused(folder)


def test_weights_may_be_links(folder: Path, tmp_path: Path) -> None:
    expected = PretrainedFolder.open(str(folder)).shapes
    for file in shards(folder):
        file.symlink_to(file.rename(tmp_path / f"stored-{file.name}"))
    assert PretrainedFolder.open(str(folder)).shapes == expected


def test_folders_without_required_files_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in shards(folder):
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    assert refused(folder).endswith("it has no safetensors files: specify a model that has safetensors files")
    (folder / "pytorch_model-00001-of-00002.bin").touch()
    assert "its weights are only available as pickles (pytorch_model-00001-of-00002.bin)" in refused(folder)
    (folder / "config.json").write_text("{")
    assert "its config.json is not JSON" in refused(folder)
    (folder / "config.json").unlink()
    assert "it has no config.json" in refused(folder)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="a file: specify the folder"):
        PretrainedFolder.open(str(tmp_path / "file"))


def test_weights_with_another_config_are_refused(folder: Path) -> None:
    opened = PretrainedFolder.open(str(folder))
    assert PretrainedFolder.open(str(folder), opened.model).model == opened.model
    change_config(folder, attn_config={"rope_theta": 7.0}, rope_parameters=None)
    with pytest.raises(
        ConfigError,
        match=r"does not match this config: attn_config.rope_theta is 7.0 in its config.json, but 500.0",
    ):
        PretrainedFolder.open(str(folder), opened.model)
