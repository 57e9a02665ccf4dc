"""Trained adapters on imported weights are exported as a stock DBRX and as a PEFT folder with the same logits."""

import itertools
import json
import math
import re
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data.base.errors import ConfigError
from tests.helpers.committed import commit
from tests.helpers.load_script import load_script
from tests.helpers.missing import skip_or_fail
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from tests.helpers.verify_here import verify_here
from tests.helpers.watched_run import run
from train.checkpoint.reader import PREFIX, CheckpointReader
from train.checkpoint.save_folder import checkpoints, read_run_id
from train.config.load import load_saved_config, read_config
from train.export.export import export
from train.export.peft import PeftWeights, _readme, export_peft
from train.models.dbrx import DbrxForCausalLM
from train.models.lora.adapters import add_lora, is_adapter
from train.weights.frozen_base import DrawnWeights, frozen_weights
from train.weights.merged import MergedWeights, whole_weights
from train.weights.pretrained import PretrainedFolder

pytestmark = pytest.mark.ranks

PEFT = Path(sys.prefix) / "peft"
"""Installed outside of the environment, because Composer imports PEFT if it can, which doubles its import time."""
KINDS = {
    "shared": "target_modules: [attn, experts, router], per_expert: false",
    "per_expert": "target_modules: [attn, experts], per_expert: true",
    "some": "target_modules: [v1, w2], per_expert: true",
}


def make_base(folder: Path) -> None:
    from transformers import DbrxForCausalLM as Stock

    from tests.helpers.stock_folder import stock_config

    torch.manual_seed(0)
    config = stock_config(
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=512,
        vocab_size=320,
        attn_config={"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 500.0},
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "ffn_act_fn": {"name": "silu"}},
        initializer_range=0.2,
    )
    model = Stock(config)
    for name, param in model.named_parameters():
        if "norm" in name.rsplit(".", 2)[-2]:
            torch.nn.init.ones_(param)
    model.save_pretrained(folder)


@pytest.fixture(scope="module", params=list(KINDS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of adapters with an imported base, trained for enough steps to change the logits."""
    folder = tmp_path_factory.mktemp(request.param)
    make_base(folder / "base")
    model = f"model={{pretrained_model_name_or_path: {folder / 'base'}, attn_config: {{}}, ffn_config: {{}}}}"
    lora = f"lora={{r: 4, alpha: 8, {KINDS[request.param]}, base_dtype: fp32}}"
    path, short = write_toy_run(folder), ["max_duration=6ba", "save_interval=6ba", "eval_loader=null"]
    run_ranks(run, 1, path, [model, lora, *short, "optimizer.lr=0.02"])
    return checkpoints(folder / "toy")[-1]


def ids() -> torch.Tensor:
    return torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def our_logits(checkpoint: Path) -> torch.Tensor:
    """Logits of the model as it was trained, with separate base and adapters."""
    config, reader = load_saved_config(checkpoint.parent / "config.yaml"), CheckpointReader(checkpoint)
    assert config.lora is not None
    model = DbrxForCausalLM(config.model)
    add_lora(model, config.lora)
    base = frozen_weights(config)
    for name, param in model.named_parameters():
        (reader if is_adapter(name) else base).rows(name, 0, param.shape[0], param)
    logits = model.eval()(ids(), return_logits=True).logits_BSV
    assert logits is not None
    return logits


@torch.no_grad()
def stock_logits(model: Any) -> torch.Tensor:
    return model.eval()(ids()).logits


def test_merged_adapters_are_a_stock_dbrx_with_the_same_logits(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    # The export itself also verifies one of the two kinds.
    monkeypatch.setattr("train.export.export.subprocess.run", verify_here)
    export(trained, tmp_path / "out", verify=trained.parents[1].name.startswith("shared"))
    ours, theirs = our_logits(trained), stock_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    base = stock_logits(AutoModelForCausalLM.from_pretrained(trained.parents[1] / "base"))
    assert (base - theirs).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def logits_by_peft(base: str, adapter: str) -> tuple[str, torch.Tensor]:
    """In a separate process: the error of the unmerged model, and the logits of the merged one."""
    sys.path.append(str(PEFT))
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    with pytest.raises(AttributeError) as error:
        stock_logits(loaded)
    return str(error.value), stock_logits(loaded.merge_and_unload())


def test_peft_loads_the_adapters_onto_the_base_with_the_same_logits(trained: Path, tmp_path: Path) -> None:
    if not PEFT.is_dir():
        skip_or_fail(f"{PEFT} is missing: make .venv/peft")
    export_peft(trained, tmp_path / "out")
    ((unmerged, merged),) = run_ranks(logits_by_peft, 1, str(trained.parents[1] / "base"), str(tmp_path / "out"))
    # Its README.md says the same: without merging, transformers reads the experts' weights without PEFT's wrapper.
    assert re.search(r"has no attribute '[wv]1'", unmerged)
    torch.testing.assert_close(merged, our_logits(trained), rtol=1e-4, atol=1e-4)
    assert "merge_and_unload()" in (tmp_path / "out" / "README.md").read_text()


def test_adapters_that_are_not_finite_are_not_exported(trained: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(trained.parent, tmp_path / "run")) / trained.name
    reader = CheckpointReader(checkpoint)
    name = next(name for name in reader.shapes if name.endswith("lora_B"))
    first = reader.tensor(PREFIX + name).numpy().tobytes()[:64]
    (file,) = checkpoint.glob("*.distcp")
    file.write_bytes(file.read_bytes().replace(first, struct.pack("<f", math.nan) + first[4:], 1))
    commit(checkpoint, str(read_run_id(checkpoint.parent)))
    with pytest.raises(ConfigError, match=f"numbers in the weights of {checkpoint}: {name}: specify an earlier"):
        export_peft(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merged_rows_do_not_depend_on_the_block_size(trained: Path) -> None:
    config = load_saved_config(trained.parent / "config.yaml")
    assert config.lora is not None
    reader = CheckpointReader(trained)
    merged, peft = whole_weights(reader, config), PeftWeights(reader, config.model, config.lora)
    assert isinstance(merged, MergedWeights)
    for source in (merged, peft):
        for name, shape in source.shapes.items():
            whole, parts = torch.empty(shape), torch.empty(shape)
            source.rows(name, 0, shape[0], whole)
            for start, stop in itertools.pairwise(sorted({0, 1, shape[0] // 3, shape[0] // 2 + 1, shape[0]})):
                source.rows(name, start, stop, parts[start:stop])
            torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-7)


def test_the_size_of_the_adapter_is_logged_first(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_peft(trained, tmp_path / "out", "bf16")
    config = load_saved_config(trained.parent / "config.yaml")
    assert config.lora is not None
    logged = int(capsys.readouterr().out.split(" bytes")[0].rpartition(" ")[2].replace(",", ""))
    file = tmp_path / "out" / "adapter_model.safetensors"
    header = int.from_bytes(file.read_bytes()[:8], "little") + 8
    assert file.stat().st_size == logged + header
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written["r"] == (16 if config.lora.per_expert else 4)
    assert written["lora_alpha"] / written["r"] == config.lora.scale


def test_the_adapters_card_names_the_base(trained: Path, tmp_path: Path) -> None:
    export_peft(trained, tmp_path / "out")
    config, card = load_saved_config(trained.parent / "config.yaml"), (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert f"The frozen base is `{trained.parents[1] / 'base'}`." in card
    assert "| r | 4 |\n| alpha | 8 |" in card
    # A local path is not a base_model on the hub.
    assert "base_model" not in card
    assert "\nbase_model: acme/dbrx\n---\n" in _readme(config, "acme/dbrx")


def test_an_export_without_the_base_is_refused(trained: Path, tmp_path: Path) -> None:
    base, away = trained.parents[1] / "base", trained.parents[1] / "away"
    base.rename(away)
    try:
        with pytest.raises(
            ConfigError, match=r"only adapters, and their base cannot be read: .*this folder does not exist"
        ):
            export(trained, tmp_path / "out")
    finally:
        away.rename(base)
    assert not (tmp_path / "out").exists()


def test_an_export_with_another_base_is_refused(trained: Path, tmp_path: Path) -> None:
    base = next((trained.parents[1] / "base").glob("*.safetensors"))
    before = base.read_bytes()
    try:
        base.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(ConfigError, match=r"trained on a different base than the one in \S+/base "):
            export(trained, tmp_path / "out")
    finally:
        base.write_bytes(before)


def test_make_tiny_dbrx_writes_the_initial_weights_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, script = tmp_path / "base", load_script("make_tiny_dbrx")
    assert script.main([str(folder), "--precision", "fp32"]) == 0
    assert script.main([str(folder)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    config = read_config(str(Path(__file__).parents[2] / "yamls/finetune/dbrx_tiny_lora.yaml"))
    imported, drawn = PretrainedFolder.open(str(folder), config.model), DrawnWeights(config.model, config.seed)
    for name, shape in drawn.shapes.items():
        there, here = torch.empty(shape), torch.empty(shape)
        imported.rows(name, 0, shape[0], there)
        drawn.rows(name, 0, shape[0], here)
        assert torch.equal(there, here), name


def test_the_script_exports_an_adapter(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("convert_checkpoint_to_hf")
    arguments = ["--composer_path", str(trained.parent), "--hf_output_path", str(tmp_path / "out"), "--adapter", "peft"]
    assert script.main(arguments) == 0
    with pytest.raises(SystemExit):
        script.main([*arguments, "--no-verify"])
    assert script.main(arguments) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
