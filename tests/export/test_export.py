import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import transformers
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from data.base.errors import ConfigError
from data.config.tokenizer import TokenizerConfig, TokenizerKwargs
from data.tokenization.build import build_tokenizer
from tests.helpers.committed import commit
from tests.helpers.load_script import load_script
from tests.helpers.ranks import run_ranks
from tests.helpers.small_export import CONFIG, MODEL, save_checkpoint
from train.checkpoint.reader import PREFIX
from train.export.export import export, find_checkpoint
from train.export.writer import MAX_SHARD_BYTES, cut
from train.hf.config_json import config_json, transformers_config
from train.models.config import AttnConfig, FFNConfig, ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.init import initialise
from train.models.shapes import parameter_shapes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model():
    built = DbrxForCausalLM(MODEL)
    initialise(built, MODEL, seed=3)
    return built.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(CONFIG)
    vocab = TokenizerKwargs(vocab_file=str(ROOT / "quickstart" / "vocab.tiktoken"))
    build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=vocab)).save_pretrained(folder / "tokenizer", 64)
    save_checkpoint(folder / "ep0-ba10", model.state_dict())
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("hf") / "deeper" / "model"
    export(run / "ep0-ba10", output, "fp32", max_shard_bytes=100_000)
    return output


def stock(folder, **kwargs):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **kwargs).eval()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_stock_transformers_computes_our_logits(exported, model, attention):
    ids = torch.randint(0, MODEL.vocab_size, (3, 40), generator=torch.Generator().manual_seed(0))
    ours = model(ids, return_logits=True).logits_BSV
    theirs = stock(exported, attn_implementation=attention)(ids).logits
    assert theirs.dtype == torch.float32
    assert (ours - theirs).abs().max() / ours.abs().max() < 1e-5


def _save_my_part(folder, whole):
    """Save the tensors on each rank, sharded by FSDP2 into parts that are as equal as possible."""
    tensors = torch.load(whole)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {
        PREFIX + name: distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None)
        for name, tensor in tensors.items()
    }
    dcp.save(state, checkpoint_id=folder)
    dist.barrier()  # rank 0 serves the store until it ends
    # The group is not destroyed: gloo's destructor hangs in one of twenty runs if other ranks close their ends first.


@pytest.mark.ranks
def test_tensors_are_gathered_from_all_ranks(run, model, tmp_path):
    sharded = copy_run(run, tmp_path / "run")
    shutil.rmtree(sharded / "ep0-ba10")
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    run_ranks(_save_my_part, 3, sharded / "ep0-ba10", tmp_path / "whole.pt")
    assert len(list((sharded / "ep0-ba10").glob("*.distcp"))) == 3
    export(sharded, tmp_path / "out")
    loaded = stock(tmp_path / "out").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


@torch.no_grad()
def greedy(model, ids, n):
    for _ in range(n):
        ids = torch.cat([ids, model(ids, return_logits=True).logits_BSV[:, -1:].argmax(-1)], dim=1)
    return ids


def test_generate_writes_the_same_text_with_every_setting(exported, model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    ids = tokenizer("Reverse: kotab\n", return_tensors="pt")["input_ids"]
    ours = greedy(model, ids, 12)
    for attention in ("eager", "sdpa"):
        theirs = stock(exported, attn_implementation=attention)
        # A random model may generate the end-of-text token, which must not end the text here.
        theirs.generation_config.eos_token_id = None
        for use_cache in (True, False):
            written = theirs.generate(ids, max_new_tokens=12, do_sample=False, use_cache=use_cache)
            assert tokenizer.decode(written[0]) == tokenizer.decode(ours[0])


def test_generation_stops_and_pads_with_the_tokenizers_ids(exported):
    generation = stock(exported).generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (270, [270, 273], 271)


def test_a_bf16_export_has_the_rounded_weights(run, model, tmp_path):
    export(run / "ep0-ba10", tmp_path / "out", "bf16")
    loaded = stock(tmp_path / "out", torch_dtype="auto").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor.bfloat16()), name
    with safe_open(tmp_path / "out" / "model-00001-of-00001.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_files_respect_the_maximum_size_and_the_index_names_them(exported, model):
    index = json.loads((exported / "model.safetensors.index.json").read_text())
    files = sorted(exported.glob("*.safetensors"))
    assert len(files) > 2
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == sum(tensor.numel() * 4 for tensor in model.state_dict().values())
    for file in files:
        with safe_open(file, "pt") as opened:
            names = set(opened.keys())
            for name in names:
                assert torch.equal(opened.get_tensor(name), model.state_dict()[name])
        assert names == {name for name, place in index["weight_map"].items() if place == file.name}
        assert file.stat().st_size < 102_000


def test_the_132b_is_split_into_files_of_5_gb():
    shapes = parameter_shapes(ModelConfig())
    shards = list(cut(shapes, "bf16", MAX_SHARD_BYTES))
    sizes = [sum(torch.Size(shapes[name]).numel() * 2 for name in names) for names in shards]
    assert [name for names in shards for name in names] == list(shapes)
    assert max(sizes) <= MAX_SHARD_BYTES
    assert sum(sizes) == 2 * 131_596_523_520


def test_names_and_shapes_are_those_of_stock_dbrx(exported):
    with torch.device("meta"):
        stock_model = transformers.DbrxForCausalLM(transformers.AutoConfig.from_pretrained(exported))
    shapes = {name: tuple(tensor.shape) for name, tensor in stock_model.state_dict().items()}
    assert shapes == parameter_shapes(MODEL)


def test_config_json_describes_the_model():
    generation = {"bos_token_id": 1, "eos_token_id": [1, 2], "pad_token_id": 3}
    model = ModelConfig(
        attn_config=AttnConfig(clip_qkv=None, rope_theta=5000),
        ffn_config=FFNConfig(moe_jitter_eps=0.0, moe_normalize_expert_weights=1),
    )
    contents = json.loads(json.dumps(config_json(model, generation, "bfloat16")))
    assert contents["rope_parameters"] == {"rope_type": "default", "rope_theta": 5000.0}
    assert contents["ffn_config"]["moe_jitter_eps"] is None
    assert isinstance(contents["ffn_config"]["moe_normalize_expert_weights"], float)
    read = transformers.DbrxConfig(**contents)
    assert (read.d_model, read.n_layers, read.attn_config.kv_n_heads) == (6144, 40, 8)
    assert (read.attn_config.rope_theta, read.ffn_config.ffn_hidden_size) == (5000.0, 10752)


@torch.no_grad()
def test_a_model_without_clipping_runs_in_transformers():
    attn, ffn = AttnConfig(kv_n_heads=1, clip_qkv=None), FFNConfig(ffn_hidden_size=8, moe_num_experts=4, moe_top_k=2)
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 1, "vocab_size": 32, "max_seq_len": 8}
    config = ModelConfig(**sizes, initializer_range=2.0, attn_config=attn, ffn_config=ffn)
    ours = DbrxForCausalLM(config).eval()
    initialise(ours, config, seed=0)
    theirs = transformers.DbrxForCausalLM(transformers_config(config)).eval()
    theirs.load_state_dict(ours.state_dict())
    ids = torch.arange(8).unsqueeze(0)
    expected = ours(ids, return_logits=True).logits_BSV
    assert (theirs(ids).logits - expected).abs().max() / expected.abs().max() < 1e-5


def test_the_newest_complete_checkpoint_of_a_save_folder_is_taken(tmp_path):
    for name, complete in (("ep0-ba9", True), ("ep1-ba10", True), ("ep1-ba11", False)):
        (tmp_path / name).mkdir()
        if complete:
            (tmp_path / name / ".metadata").touch()
    (tmp_path / "ep1-ba12-rank0.pt").touch()
    assert find_checkpoint(tmp_path).name == "ep1-ba10"
    (tmp_path / "latest").symlink_to("ep0-ba9")
    assert find_checkpoint(tmp_path / "latest") == tmp_path.resolve() / "ep0-ba9"


def test_a_path_that_is_not_a_checkpoint_is_described(tmp_path):
    (tmp_path / "file.pt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("ep0-ba1")
    for name, message in (
        ("none", "it does not exist"),
        ("file.pt", "it is a file; resume the run from this file, and export the next checkpoint of the run"),
        ("empty", "it is an empty folder"),
        ("link", "it is a link to ep0-ba1, which does not exist"),
        (".", "it is a folder that contains empty, file.pt, link"),
    ):
        with pytest.raises(ConfigError, match=f"is neither a checkpoint .*: {message}"):
            find_checkpoint(tmp_path / name)


def copy_run(run, folder, *, tensors=None):
    shutil.copytree(run, folder)
    if tensors is not None:
        shutil.rmtree(folder / "ep0-ba10")
        save_checkpoint(folder / "ep0-ba10", tensors)
    return folder


def refused(run, output, message):
    """Check that the export fails with this message and leaves no files."""
    with pytest.raises(ConfigError, match=message):
        export(run, output)
    assert not output.exists()
    assert not [entry for entry in output.parent.iterdir() if ".part" in entry.name]


def test_tensors_that_a_stock_dbrx_does_not_have_are_named(run, model, tmp_path):
    tensors = model.state_dict()
    tensors["extra.weight"] = torch.zeros(2)
    tensors["transformer.norm_f.weight"] = torch.zeros(33)
    del tensors["lm_head.weight"]
    message = (
        r"ep0-ba10 does not match the model of .*: lm_head.weight is missing; extra.weight is not a parameter "
        r"of DBRX; transformer.norm_f.weight is \[33\], expected \[32\]$"
    )
    refused(copy_run(run, tmp_path / "run", tensors=tensors), tmp_path / "out", message)


def test_no_more_than_ten_tensors_are_named(run, tmp_path):
    message = r"transformer.wte.weight is missing; .*blocks.1.norm_attn_norm.norm_1.weight is missing \(and 9 more\)"
    refused(copy_run(run, tmp_path / "run", tensors={}), tmp_path / "out", message)


def test_an_incomplete_checkpoint_is_refused(run, tmp_path):
    broken = copy_run(run, tmp_path / "run")
    (data,) = (broken / "ep0-ba10").glob("*.distcp")
    os.truncate(data, data.stat().st_size - 1)
    refused(broken, tmp_path / "out", r"ep0-ba10 is corrupt: __0_0.distcp has [\d,]+ bytes, but [\d,]+ were written")
    data.unlink()
    refused(broken, tmp_path / "out", r"ep0-ba10 is corrupt: __0_0.distcp is missing")
    (broken / "ep0-ba10" / "manifest.json").write_bytes(b"damaged")
    refused(broken, tmp_path / "out", r"ep0-ba10 is corrupt: manifest.json is damaged")


def test_a_tensor_that_cannot_be_read_is_named(run, tmp_path):
    broken = copy_run(run, tmp_path / "run")
    (data,) = (broken / "ep0-ba10").glob("*.distcp")
    data.write_bytes(b"\0" * data.stat().st_size)
    refused(broken, tmp_path / "out", r"ep0-ba10 is corrupt: __0_0.distcp does not match its hash in bytes \[0, ")
    commit(broken / "ep0-ba10")
    refused(broken, tmp_path / "out", r"ep0-ba10 is corrupt: __0_0.distcp does not contain transformer.wte.weight: .")


def test_the_files_beside_the_checkpoints_are_required(run, tmp_path):
    bare = copy_run(run, tmp_path / "run")
    shutil.rmtree(bare / "tokenizer")
    refused(
        bare, tmp_path / "out", "tokenizer/generation_config.json does not exist, but the export reads the tokenizer"
    )
    (bare / "config.yaml").unlink()
    refused(bare, tmp_path / "out", "config.yaml does not exist, but the export reads the model's shape from it")


def test_the_output_must_be_new_or_empty(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file is a file, but it must be a folder"):
        export(run, tmp_path / "file")
    with pytest.raises(ConfigError, match=r"the output folder .* is not empty"):
        export(run, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    export(run, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.subprocess
def test_the_script(run, tmp_path):
    command = [sys.executable, "scripts/convert_checkpoint_to_hf.py", "--composer_path", str(run)]
    command += ["--hf_output_path", str(tmp_path / "out"), "--output_precision", "bf16"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"exporting {run.resolve() / 'ep0-ba10'} in bf16\nverified: 19 tensors")
    assert f"\nwrote {tmp_path / 'out'}" in ran.stdout
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_the_script_reports_an_error_in_one_line(run, tmp_path, capsys):
    script = load_script("convert_checkpoint_to_hf")
    assert script.main(["--composer_path", str(run), "--hf_output_path", str(run)]) == 2
    assert (
        capsys.readouterr().err
        == f"error: the output folder {run} is not empty: specify a new folder, or empty this one\n"
    )


def test_the_output_of_the_tokenizer_can_be_passed_to_generate(exported):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    inputs = tokenizer("Reverse: abc", return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert stock(exported).generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
