"""The verification of exports: it accepts what was exported, and detects a change in any file."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.base.errors import ConfigError
from tests.helpers.small_export import save_checkpoint, write_run
from train.export.export import export
from train.export.verify import main, verify
from train.export.verify_logits import compare
from train.models import moe

ROOT = Path(__file__).resolve().parents[2]
INDEX = "model.safetensors.index.json"
NORM = "transformer.blocks.0.norm_attn_norm.norm_1.weight"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "run"
    write_run(folder)
    return folder


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def exported(run: Path, request: pytest.FixtureRequest) -> Path:
    export(run, run.parent / request.param, request.param, max_shard_bytes=20_000)
    return run.parent / request.param


def test_an_export_passes_its_verification(exported: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(exported), "--composer_path", str(run)]) == 0
    message = capsys.readouterr().out
    assert "verified: 19 tensors with the names and shapes of stock DBRX, byte-identical to the checkpoint" in message
    assert "block by block: " in message
    assert "the whole model: largest relative difference " in message


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a NaN and an infinite number."""
    folder = tmp_path_factory.mktemp("diverged") / "run"
    state = write_run(folder).state_dict()
    state[NORM][3], state["lm_head.weight"][-1, 0] = torch.nan, torch.inf
    save_checkpoint(folder / "ep0-ba20", state)
    return folder / "ep0-ba20"


def test_weights_that_are_not_finite_are_named(
    diverged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_here(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        code = main(command[3:])
        return subprocess.CompletedProcess(command, code, *capsys.readouterr())

    monkeypatch.setattr("train.export.export.subprocess.run", run_here)
    with pytest.raises(ConfigError) as caught:
        export(diverged, tmp_path / "out", verify=True)
    assert str(caught.value) == (
        f"{tmp_path / 'out'} was not created: there are NaN or infinite numbers in the weights of {diverged}: {NORM}; "
        "lm_head.weight: specify an earlier checkpoint, from before the training diverged"
    )
    assert list(tmp_path.iterdir()) == []


def change_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    contents = json.loads(file.read_text())
    change(contents)
    file.write_text(json.dumps(contents))


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def weights(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[1]


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte of a tensor": (
        lambda f: flip(weights(f), -100),
        r"model-00002-of-.* differs from the checkpoint in rows \d+ to \d+ of \S+",
    ),
    "a byte of a header": (lambda f: flip(weights(f), 30), r"model-00002-of-"),
    "a cut-off file": (lambda f: os.truncate(weights(f), 10_000), r"model-00002-of-\S+ is truncated"),
    "a missing file": (lambda f: weights(f).unlink(), r"model-00002-of-\S+ cannot be read: No such file"),
    "a file too many": (lambda f: (f / "pytorch_model.bin").touch(), "pytorch_model.bin does not belong to the export"),
    "code": (lambda f: (f / "modeling_dbrx.py").touch(), "modeling_dbrx.py does not belong to the export"),
    "an adapter, which transformers would load": (
        lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LORA"}'),
        "adapter_config.json makes transformers load another model",
    ),
    "a second list of tokens": (
        lambda f: (f / "added_tokens.json").write_text('{"<x>": 7}'),
        "added_tokens.json does not belong to the export",
    ),
    "the index's place of a tensor": (
        lambda f: change_json(f / INDEX, lambda c: c["weight_map"].update({NORM: max(c["weight_map"].values())})),
        r"model-\S+ has a header that does not match the tensors that the index lists",
    ),
    "a name of the index": (
        lambda f: change_json(f / INDEX, lambda c: c["weight_map"].pop(NORM)),
        rf"{INDEX} does not list exactly the tensors of DBRX; it differs in \['{NORM}'\]",
    ),
    "the index's size": (
        lambda f: change_json(f / INDEX, lambda c: c["metadata"].update(total_size=1)),
        f"{INDEX} does not have the correct total_size",
    ),
    "rope_theta": (
        lambda f: change_json(f / "config.json", lambda c: c["attn_config"].update(rope_theta=501.0)),
        "config.json has attn_config .*501.0",
    ),
    "transformers 5's rope_theta": (
        lambda f: change_json(f / "config.json", lambda c: c["rope_parameters"].update(rope_theta=501.0)),
        "config.json has rope_parameters .*501.0",
    ),
    "clip_qkv": (
        lambda f: change_json(f / "config.json", lambda c: c["attn_config"].update(clip_qkv=0.6)),
        "config.json has attn_config .*0.6",
    ),
    "moe_top_k": (
        lambda f: change_json(f / "config.json", lambda c: c["ffn_config"].update(moe_top_k=2)),
        "config.json has ffn_config",
    ),
    "a key too many": (
        lambda f: change_json(f / "config.json", lambda c: c.update(auto_map={})),
        "config.json has auto_map {}, but the checkpoint has None",
    ),
    "code that the config names": (
        lambda f: change_json(f / "config.json", lambda c: c.update(auto_map={"AutoConfig": "x.Y"})),
        "config.json has auto_map {'AutoConfig': 'x.Y'}, which specifies code of a repository to run",
    ),
    "code in a folder, which transformers 4 would run": (
        lambda f: ((f / "custom_generate").mkdir(), (f / "custom_generate" / "generate.py").touch()),
        "custom_generate/generate.py is code that transformers 4 runs",
    ),
    "other code in a folder": (
        lambda f: ((f / ".x").mkdir(), (f / ".x" / "code.py").touch()),
        r"\.x/code.py does not belong to the export",
    ),
    "a folder of licenses": (
        lambda f: ((f / "LICENSES").mkdir(), (f / "LICENSES" / "a").touch()),
        "LICENSES/a does not belong to the export",
    ),
    "templates by a link": (
        lambda f: ((f / ".x").mkdir(), (f / "additional_chat_templates").symlink_to(".x")),
        "additional_chat_templates does not belong to the export",
    ),
    "an index that is nested too deeply": (
        lambda f: (f / INDEX).write_text("[" * 100_000),
        f"{INDEX} is nested too deeply to be read",
    ),
    "the config's dtype": (
        lambda f: change_json(f / "config.json", lambda c: c.update(torch_dtype="float16")),
        "config.json has torch_dtype float16",
    ),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "the vocabulary": (
        lambda f: change_json(f / "tokenizer.json", lambda c: c["model"]["vocab"].update({"!": 1, '"': 0})),
        "tokenizer.json differs from the file that the run wrote",
    ),
    "the tokenizer's config": (
        lambda f: change_json(f / "tokenizer_config.json", lambda c: c.update(eos_token="<|im_end|>")),
        "tokenizer_config.json differs from the file",
    ),
    "the chat template": (
        lambda f: (f / "chat_template.jinja").write_text("{{ x }}"),
        "chat_template.jinja differs from the file",
    ),
    "the generation config": (
        lambda f: change_json(f / "generation_config.json", lambda c: c.update(eos_token_id=1)),
        "generation_config.json differs from the file",
    ),
    "no card": (lambda f: (f / "README.md").unlink(), "README.md is missing"),
    "a tokenizer file gone": (lambda f: (f / "special_tokens_map.json").unlink(), "special_tokens_map.json is missing"),
}


@pytest.mark.parametrize("changed", CHANGES)
@pytest.mark.parametrize("exported", ["fp32"], indirect=True)
def test_a_file_changed_by_hand_is_caught(changed: str, exported: Path, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(exported, folder)
    change, message = CHANGES[changed]
    change(folder)
    with pytest.raises(ConfigError, match=message):
        verify(folder, run)


@pytest.mark.parametrize("exported", ["fp32"], indirect=True)
def test_a_difference_in_the_computation_is_detected(
    exported: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our block is changed to compute different values; transformers' block is not."""
    route = moe.Router.forward

    def heavier(self: moe.Router, x_TD: torch.Tensor) -> moe.Routing:
        routing = route(self, x_TD)
        return routing._replace(weights_TK=routing.weights_TK * 1.01)

    monkeypatch.setattr(moe.Router, "forward", heavier)
    with pytest.raises(ConfigError, match=r"transformers \S+ computes different values: block 0 differ by"):
        verify(exported, run)


@pytest.mark.parametrize(
    ("template", "why"),
    [("raise_exception('no such turn')", "no such turn"), ("'x' * 2**31", "it needs more than 1,024 MiB of memory")],
)
def test_a_template_that_cannot_render_is_reported(run: Path, tmp_path: Path, template: str, why: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "tokenizer" / "chat_template.jinja").write_text(f"{{{{ {template} }}}}")
    export(tmp_path / "run", tmp_path / "out")
    with pytest.raises(ConfigError, match=rf"the chat template does not render .*: {why}"):
        verify(tmp_path / "out", tmp_path / "run")


def test_a_tokenizer_with_several_templates_is_exported_whole(run: Path, tmp_path: Path) -> None:
    templates = shutil.copytree(run, tmp_path / "run") / "tokenizer" / "additional_chat_templates"
    templates.mkdir()
    (templates / "tool_use.jinja").write_text("{{ messages }}")
    export(tmp_path / "run", tmp_path / "out")
    assert verify(tmp_path / "out", tmp_path / "run")
    (tmp_path / "out/additional_chat_templates/tool_use.jinja").write_text("x")
    with pytest.raises(ConfigError, match=r"templates/tool_use\.jinja differs from the file that the run wrote"):
        verify(tmp_path / "out", tmp_path / "run")


def test_code_in_the_tokenizers_folder_is_not_executed(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    for folder in (tmp_path / "run" / "tokenizer", tmp_path / "out"):
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    for call in (lambda: verify(tmp_path / "out", tmp_path / "run"), lambda: export(tmp_path / "run", tmp_path / "2")):
        with pytest.raises(
            ConfigError, match=r"tokenizer/custom_generate/generate\.py is code that transformers 4 runs"
        ):
            call()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}


def test_differences_are_relative_to_each_token() -> None:
    ours = torch.ones(3, 4)
    ours[0] = 1e5
    with pytest.raises(ConfigError, match=r"block 7 differ by 1\.0e-02 relative to a token's largest value"):
        compare(ours + torch.tensor([0.0, 0.01, 0.0]).unsqueeze(1), ours, "block 7")


def test_tokens_with_tied_experts_are_excluded(tmp_path: Path) -> None:
    """With a router of zeros all experts are tied, and the two sides may select different ones."""
    model = write_run(tmp_path / "run")
    for block in model.transformer.blocks:
        block.ffn.router.layer.weight.data.zero_()
    shutil.rmtree(tmp_path / "run" / "ep0-ba10")
    save_checkpoint(tmp_path / "run" / "ep0-ba10", model.state_dict())
    export(tmp_path / "run", tmp_path / "out")
    assert "the whole model: largest relative difference 0e+00 on 0 tokens" in verify(
        tmp_path / "out", tmp_path / "run"
    )


@pytest.mark.subprocess
def test_an_export_that_fails_its_verification_does_not_appear(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verification runs in a separate process that the export starts."""
    monkeypatch.setattr(
        "train.export.export.model_card", lambda *args: (tmp_path / ".out.part" / "code.py").touch() or ""
    )
    with pytest.raises(
        ConfigError,
        match=r"the export failed its verification, and \S+/out was not created: code.py does not belong to",
    ):
        export(run, tmp_path / "out", verify=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.subprocess
def test_the_module_runs_on_its_own_and_reports_an_error_in_one_line(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "train.export.verify", str(tmp_path), "--composer_path", str(run)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 2
    assert ran.stderr.strip().splitlines()[-1] == "error: config.json cannot be read: No such file or directory"
