"""`checkpoint.py diff`: manifest, config, state, tensors."""

import math
from pathlib import Path

import pytest
import torch
from rich.table import Table

from tests.helpers.saved_checkpoints import CONFIG, flip, write_checkpoint
from train.checkpoint.reader import PREFIX
from train.checkpoint.storage.manifest import CorruptCheckpointError
from train.inspection import tensors
from train.inspection.comparison import Comparison, compare, lines

STEP = "state.optimizers.AdamW.state.model.w.step"


def weights(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {PREFIX + name: torch.randn(7, 5, generator=generator) for name in ("v", "w")}
    return found | {STEP: torch.tensor(4.0)} | {PREFIX + name: value for name, value in changes.items()}


def compared(folder: Path, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> Comparison:
    return compare(write_checkpoint(folder / "a", a), write_checkpoint(folder / "b", b))


def text(found: Comparison, top: int = 10) -> str:
    return "\n".join("TABLE" if isinstance(line, Table) else line for line in lines(found, "A", "B", top))


def test_two_saves_of_the_same_state_differ_only_in_times(tmp_path: Path) -> None:
    found = compared(tmp_path, weights(), weights())
    assert found.equal
    assert text(found).splitlines() == [
        "A -> B",
        "manifest: equal",
        "config: equal",
        "state: equal",
        "tensors: 3 equal",
        "not counted as differences: timestamp.total_wct",
    ]


def test_differences_of_tensors_match_a_plain_computation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_PIECE", 10)  # two rows at a time
    a, b = torch.randn(7, 5), torch.randn(7, 5)
    b[0, :3] = a[0, :3]
    (found,) = compared(tmp_path, weights(w=a), weights(w=b)).tensors.different
    assert found.name == "w"
    assert found.largest == (a.double() - b.double()).abs().max().item()
    assert found.mean == pytest.approx((a.double() - b.double()).abs().mean().item())
    assert found.relative == pytest.approx(((a.double() - b.double()).norm() / a.double().norm()).item())


def test_differences_are_sorted_with_nan_first(tmp_path: Path) -> None:
    a, none = weights(), torch.full((7, 5), math.nan)
    b = {**a, PREFIX + "v": a[PREFIX + "v"] + 9, PREFIX + "w": a[PREFIX + "w"] + 1, PREFIX + "x": none}
    found = compared(tmp_path, a | {PREFIX + "x": torch.ones(7, 5)}, b).tensors
    assert [each.name for each in found.different] == ["x", "v", "w"]
    assert "and 1 more (--top)" in text(compared(tmp_path / "again", a, b), top=1)


def test_missing_tensors_shapes_and_counts_of_steps_are_named(tmp_path: Path) -> None:
    a = weights(w=torch.ones(2), only_a=torch.ones(1))
    b = weights(w=torch.ones(3), v=torch.ones(7, 5, dtype=torch.bfloat16)) | {STEP: torch.tensor(8.0)}
    found = compared(tmp_path, a, b)
    assert found.tensors.only_first == ["only_a"]
    assert sorted(found.tensors.other_shape) == ["v: float32 [7, 5], bfloat16 [7, 5]", "w: float32 [2], float32 [3]"]
    assert found.tensors.scalars == {"AdamW step: 4 -> 8": 1}
    assert "tensors: 0 equal, 1 only in A, 2 with a different shape or dtype, 1 with different values" in text(found)


def test_config_and_state_differ_by_key(tmp_path: Path) -> None:
    a = write_checkpoint(tmp_path / "a", weights())
    config = CONFIG.replace("lr: 1.0e-3", "lr: 1.0e-2")
    found = compare(a, write_checkpoint(tmp_path / "b", weights(), batch=20, lr=1e-2, config=config))
    assert found.manifest == ["batch: 10 -> 20"]
    assert found.config == ["optimizer.lr: 0.001 -> 0.01"]
    groups = [f"param_groups.parameters.{name}: 0.001 -> 0.01" for name in ("lr", "initial_lr")]
    assert found.state == ["timestamp.batch: 10 -> 20", *groups]
    assert found.tensors.equal
    assert not found.equal


def test_configs_with_unknown_keys_are_compared_as_a_whole(tmp_path: Path) -> None:
    a, b = (write_checkpoint(tmp_path / name, weights(), config=f"{CONFIG}old_key: 1\n") for name in "ab")
    assert compare(a, b).equal
    other = write_checkpoint(tmp_path / "c", weights(), config=f"{CONFIG}old_key: 2\n")
    (line,) = compare(a, other).config
    assert line.startswith("cannot be compared by key: ")
    assert "old_key" in line


def test_files_are_verified_when_they_are_compared(tmp_path: Path) -> None:
    a, b = (write_checkpoint(tmp_path / name, weights()) for name in "ab")
    flip(b / "__0_0.distcp", (b / "__0_0.distcp").stat().st_size // 2)
    with pytest.raises(CorruptCheckpointError, match="does not match its hash"):
        compare(a, b)


def test_a_checkpoint_of_an_earlier_version_is_compared(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "run" / "ep0-ba4"
    assert compare(golden, golden).equal
    found = compare(golden, write_checkpoint(tmp_path, weights()))
    assert found.manifest == ["manifest: absent -> present"]
    assert found.tensors.only_second == ["v", "w", "w (AdamW step)"]
