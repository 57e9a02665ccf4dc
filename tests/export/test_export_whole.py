"""Whole exports: killed and continued, with the model card of the run, and repeated after an import."""

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from tqdm import tqdm

from data.base.errors import ConfigError
from data.base.locks import exclusive
from data.mixing.row_plan import RowPlan
from tests.helpers.ranks import run_ranks
from tests.helpers.small_export import MODEL, write_run
from tests.helpers.stock_folder import write_stock_folder
from train.callbacks.run_record import RunRecord
from train.checkpoint.reader import PREFIX, CheckpointReader
from train.config.load import load_saved_config, to_yaml
from train.config.schema import FSDPConfig
from train.distributed.build_model import build_model
from train.export.export import export
from train.export.model_card import model_card, read_record
from train.export.writer import write_file
from train.hf.safetensors_file import header
from train.models.config import LoraConfig
from train.models.shapes import parameter_shapes
from train.supervision.record_file import Record
from train.weights.pretrained import PretrainedFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    write_run(folder)
    return folder


def killed_after(run: Path, output: Path, n_reads: int) -> None:
    """An export whose process dies at the n-th read of a tensor. Each tensor is one block of rows."""
    rows, left = CheckpointReader.rows, [n_reads]

    def dying(self: CheckpointReader, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        rows(self, name, start, stop, out)

    def run_it() -> None:
        CheckpointReader.rows = dying
        export(run, output, max_shard_bytes=100_000)

    process = multiprocessing.get_context("fork").Process(target=run_it)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def read_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list of the tensors' names in the order in which they are read."""
    rows, names = CheckpointReader.rows, []

    def noting(self: CheckpointReader, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        names.append(name)
        rows(self, name, start, stop, out)

    monkeypatch.setattr(CheckpointReader, "rows", noting)
    return names


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("n_reads", [0, 1, 5, 18])
def test_a_killed_export_continues(
    run: Path, tmp_path: Path, n_reads: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export(run, tmp_path / "whole", max_shard_bytes=100_000)
    killed_after(run, tmp_path / "out", n_reads)
    assert not (tmp_path / "out").exists()
    names = read_names(monkeypatch)
    export(run, tmp_path / "out", max_shard_bytes=100_000)
    assert f"continuing in {tmp_path / '.out.part'}, where " in capsys.readouterr().out
    assert len(names) == len(parameter_shapes(MODEL)) - n_reads
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.parametrize("change", ["precision", "checkpoint"])
def test_files_of_an_export_with_other_arguments_are_not_reused(
    run: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "run")
    killed_after(tmp_path / "run", tmp_path / "out", 12)
    names = read_names(monkeypatch)
    if change == "checkpoint":
        os.utime(tmp_path / "run" / "ep0-ba10" / ".metadata", (1, 1))
    export(tmp_path / "run", tmp_path / "out", "bf16" if change == "precision" else "fp32", max_shard_bytes=100_000)
    assert set(names) == set(parameter_shapes(MODEL))


def test_an_export_continues_after_the_disk_was_full(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("train.export.writer._write_tensor", full)
        message = (
            r"out cannot be written: No space left on device; the partial export remains in \S+/.out.part, and the same"
        )
        with pytest.raises(ConfigError, match=message):
            export(run, tmp_path / "out")
    export(run, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_disk_without_space_is_reported_before_writing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match=r"the export needs [\d.]+kb, but \S+ has 1000b free"):
        export(run, tmp_path / "deeper" / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_second_export_to_the_same_folder_is_refused(run: Path, tmp_path: Path) -> None:
    with exclusive(tmp_path / ".out.part" / ".lock", lambda: None):
        with pytest.raises(ConfigError, match=r"another export to \S+out is running"):
            export(run, tmp_path / "out")


def test_only_a_few_rows_are_in_memory(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, sizes = CheckpointReader.rows, []

    def measuring(self: CheckpointReader, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        sizes.append(out.nbytes)
        rows(self, name, start, stop, out)

    monkeypatch.setattr(CheckpointReader, "rows", measuring)
    monkeypatch.setattr("train.hf.tensors.PIECE_BYTES", 1000)
    export(run, tmp_path / "out", "bf16")
    assert max(sizes) <= 1000
    assert sum(sizes) == 2 * sum(torch.Size(shape).numel() for shape in parameter_shapes(MODEL).values())


class Blocks:
    """A tensor of 4 blocks of two rows, filled with the number of the block. `arrive` is called when a block is
    read."""

    shapes, files = {"a": (8, 3)}, ()

    def __init__(self, arrive: Callable[[int], object]) -> None:
        self.arrive = arrive

    def pieces(self, name: str, dtype: torch.dtype) -> None:
        return None

    def rows(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        self.arrive(start // 2)
        out.fill_(start // 2)


def write_blocks(source: Blocks, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.hf.tensors.PIECE_BYTES", 2 * 3 * 2)
    with tqdm(disable=True) as progress:
        write_file(source, path, source.shapes, "bf16", progress)


def test_blocks_that_are_read_out_of_order_are_written_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = threading.Event()

    def arrive(block: int) -> None:
        if block == 1:
            second.set()
        assert second.wait(10)

    write_blocks(Blocks(arrive), tmp_path / "a.safetensors", monkeypatch)
    assert load_file(tmp_path / "a.safetensors")["a"][::2, 0].tolist() == [0, 1, 2, 3]


def test_no_block_is_written_after_one_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    third, threads = threading.Event(), threading.active_count()

    def arrive(block: int) -> None:
        if block == 1:
            assert third.wait(10)
            raise ConfigError("a is damaged")
        if block == 2:
            third.set()

    with pytest.raises(ConfigError, match="a is damaged"):
        write_blocks(Blocks(arrive), tmp_path / "a.safetensors", monkeypatch)
    begin = header(Blocks.shapes, "bf16")
    assert (tmp_path / "a.safetensors").read_bytes() == begin + bytes(2 * 3 * 2)
    assert threading.active_count() == threads


def test_the_model_card(run: Path, tmp_path: Path) -> None:
    config = load_saved_config(run / "config.yaml")
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    text = to_yaml(config).replace("pretrained_model_name_or_path: null", "pretrained_model_name_or_path: acme/dbrx")
    text = text.replace("hf_name: json", "hf_name: null").replace("remote: null", "remote: s3://me:word@x.org/a")
    (folder / "config.yaml").write_text(text)
    record = [
        {"batch": 5, "rows": {"": 10}, "tokens": {}, "versions": {"torch": "0"}},
        {"batch": 10, "eval": {"LanguageCrossEntropy": 3.0, "Worst": "nan"}},
        {"batch": 10, "rows": {"": 20}, "tokens": {"": 1234}, "versions": {"torch": "2.7.0"}},
        {"batch": 10, "event": "spike", "message": "a spike", "rows": {"": 30}},
        {"batch": 10, "samples": [{"prompt": "a", "text": "b"}]},
        {"batch": "10", "eval": 3.0},
        ["no", "object"],
        {"batch": 11, "eval": {"LanguageCrossEntropy": 1.0}},
    ]
    lines = [json.dumps(line) for line in record]
    (folder / "record.jsonl").write_text("\n".join([*lines, '{"batch": 1']))
    export(folder, tmp_path / "out", "bf16")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "\nbase_model: acme/dbrx\n" in card
    assert "fine-tuned from `acme/dbrx`" in card
    assert "Exported in bf16 from the checkpoint `ep0-ba10`" in card
    assert "| all | `s3://***@x.org/a` | 20 | 1,234 |" in card
    assert "| tokens (including padding) | 1,280 |" in card
    assert "| learning rate | 0.001, constant_with_warmup, warmup 0ba |" in card
    assert "after 10 steps:\n\n| metric | value |\n|---|---|\n| LanguageCrossEntropy | 3 |\n| Worst | nan |" in card
    assert "| torch | 2.7.0 |" in card
    assert "word" not in card


def test_the_card_has_the_precision_of_each_start(run: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(load_saved_config(run / "config.yaml"), precision="amp_bf16")
    starts = [(0, "CPU"), (5, "CPU"), (8, "NVIDIA H200"), (10, "CPU")]  # the last one begins after the checkpoint
    lines = [{"batch": n, "event": "start", "precision": "amp_bf16", "device": device} for n, device in starts]
    for count, expected in ((2, "fp32"), (4, "fp32, then amp_bf16"), (0, "amp_bf16 (fp32 if trained on CPU)")):
        (tmp_path / "record.jsonl").write_text("\n".join(map(json.dumps, lines[:count])))
        assert f"| precision | {expected} |" in model_card(tmp_path / "ep0-ba10", config, "fp32")


def test_the_card_of_a_run_without_a_record(run: Path) -> None:
    card = model_card(run / "ep0-ba10", load_saved_config(run / "config.yaml"), "fp32")
    assert "trained from scratch" in card
    assert "| all | `json` | not recorded | not recorded |" in card
    assert "## Evaluation" not in card
    assert "base_model" not in card


def test_a_truncated_line_of_the_record_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "record.jsonl").write_text('{"batch": 4, "rows')
    noting = RunRecord(Record({"save_folder": tmp_path}), cast(RowPlan, None), 4, 8)
    noting._add({"batch": 6, "eval": {"loss": 2.0}})
    noting._add({"batch": 8, "rows": {"": 64}})
    assert read_record(tmp_path / "ep0-ba8") == {
        "eval": {"loss": 2.0},
        "eval_batch": 6,
        "batch": 8,
        "rows": {"": 64},
    }


def test_the_card_describes_adapters_and_names_their_base(run: Path) -> None:
    config = load_saved_config(run / "config.yaml")
    lora = LoraConfig(r=4, alpha=8.0, target_modules=["experts"], per_expert=True)
    card = model_card(run / "ep0-ba10", dataclasses.replace(config, lora=lora, load_path="runs/a/ep0-ba5"), "fp32")
    assert "fine-tuned from `runs/a/ep0-ba5`" in card
    table = "| r | 4 |\n| alpha | 8 |\n| dropout | 0 |\n| target_modules | experts |\n| per_expert | true |\n"
    assert "## LoRA\n\nTrained with LoRA adapters, which are merged into the weights.\n\n" in card
    assert f"\n\n| lora | value |\n|---|---|\n{table}" in card
    assert "base_model" not in card


def test_a_missing_chunk_is_reported(run: Path) -> None:
    reader = CheckpointReader(run / "ep0-ba10")
    stored = reader.metadata.state_dict_metadata[f"{PREFIX}lm_head.weight"]
    assert isinstance(stored, TensorStorageMetadata)
    (whole,) = stored.chunks
    offsets, sizes = torch.Size([1, 0]), torch.Size([whole.sizes[0] - 1, whole.sizes[1]])
    stored.chunks = [ChunkStorageMetadata(offsets, sizes)]
    with pytest.raises(ConfigError, match=r"lm_head\.weight is not stored in disjoint chunks of whole rows"):
        reader.check(MODEL, "the config's")


def test_a_killed_verification_keeps_the_partial_export(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = subprocess.CompletedProcess([], -signal.SIGKILL, "", "")
    monkeypatch.setattr("train.export.export.subprocess.run", lambda *args, **kwargs: killed)
    with pytest.raises(ConfigError, match=r"its verification was killed by signal 9 .*continues the export"):
        export(run, tmp_path / "out", verify=True)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.part" / "config.json").is_file()


def _import_and_save(stock: str, checkpoint: Path) -> None:
    dist.init_process_group("gloo")
    opened = PretrainedFolder.open(stock)
    model = build_model(
        opened.model, FSDPConfig(), precision="fp32", device=torch.device("cpu"), seed=1, pretrained=opened
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({PREFIX + name: param for name, param in model.state_dict().items()}, checkpoint_id=checkpoint)
    dist.barrier()


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.ranks
def test_tensors_do_not_change_from_import_to_export(run: Path, tmp_path: Path) -> None:
    """From bf16 through fp32 on 2 ranks to bf16, byte for byte; the same holds for the precision of any folder."""
    write_stock_folder(tmp_path / "stock", torch.bfloat16, vocab_size=MODEL.vocab_size)
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("ep0-ba10"))
    opened = PretrainedFolder.open(str(tmp_path / "stock"))
    config = load_saved_config(run / "config.yaml")
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(dataclasses.replace(config, model=opened.model)))
    run_ranks(_import_and_save, 2, str(tmp_path / "stock"), tmp_path / "run" / "ep0-ba1")
    export(tmp_path / "run", tmp_path / "out", "bf16", verify=True)
    before, after = ({}, {})
    for folder, tensors in ((tmp_path / "stock", before), (tmp_path / "out", after)):
        for file in folder.glob("*.safetensors"):
            tensors |= load_file(file)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype == torch.bfloat16
        assert torch.equal(tensor.view(torch.int16), after[name].view(torch.int16)), name
