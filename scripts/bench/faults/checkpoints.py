"""Faults in the files of checkpoints. A resumed run must report the name of the corrupt file, and resume from an older
checkpoint."""

import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from scripts.bench.faults.damage import change_state, flip_bit, flip_tensor
from scripts.bench.faults.runs import FELL_BACK, REFUSED, SAME, SAVED, Case, Lab, refusal

MIDDLE, NEWEST = (f"ep0-ba{batch}" for batch in SAVED[-2:])
_DELETED = "reported and deleted, same model"
_KEPT = "kept until a newer checkpoint was verified, same model"
_KEPT_LAST = "last good checkpoint kept, corrupt ones reported"


def _weight(key: str) -> bool:
    return key.startswith("state.model.")


def _moment(key: str) -> bool:
    return key.startswith("state.optimizers.") and "exp_avg" in key


def _bits(lab: Lab) -> Iterator[str]:
    for number in range(16):
        draw, ranks = random.Random(number), number % 2 + 1
        copy = lab.copy(ranks)
        file = draw.choice(sorted((copy / NEWEST).glob("*.distcp")))
        flip_bit(file, draw)
        yield lab.outcome(lab.resume(copy, ranks=ranks), copy, NEWEST, file.name, ranks=ranks)


def _moments(lab: Lab) -> Iterator[str]:
    for number in range(2):
        copy = lab.copy()
        name = flip_tensor(copy / NEWEST, _moment, random.Random(number))
        yield lab.outcome(lab.resume(copy), copy, NEWEST, name)


def _state(key: str, lab: Lab) -> Iterator[str]:
    copy = lab.copy()
    change_state(copy / NEWEST, key, random.Random(0))
    yield lab.outcome(lab.resume(copy), copy, NEWEST, "state.json")


def _swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    assert first != second
    assert len(first) == len(second)
    one.write_bytes(second)
    other.write_bytes(first)


def _swapped_steps(lab: Lab) -> Iterator[str]:
    for ranks in (1, 2):
        copy = lab.copy(ranks)
        name = f"__{ranks - 1}_0.distcp"
        _swap(copy / NEWEST / name, copy / MIDDLE / name)
        yield lab.outcome(lab.resume(copy, ranks=ranks), copy, NEWEST, MIDDLE, name, ranks=ranks)


def _swapped_runs(lab: Lab) -> Iterator[str]:
    copy, other = lab.copy(), lab.copy(seed=18)
    _swap(copy / NEWEST / "__0_0.distcp", other / NEWEST / "__0_0.distcp")
    yield lab.outcome(lab.resume(copy), copy, NEWEST, "__0_0.distcp")


def _another_run(lab: Lab) -> Iterator[str]:
    copy, other = lab.copy(), lab.copy(seed=18)
    shutil.rmtree(copy / NEWEST)
    shutil.copytree(other / NEWEST, copy / NEWEST)
    yield lab.outcome(lab.resume(copy), copy, NEWEST, "another run")


def _another_step(lab: Lab) -> Iterator[str]:
    copy = lab.copy()
    shutil.rmtree(copy / NEWEST)
    shutil.copytree(copy / MIDDLE, copy / NEWEST)
    yield lab.outcome(lab.resume(copy), copy, NEWEST, f"batch {SAVED[-2]}")


def _readers(lab: Lab) -> Iterator[str]:
    """Run all commands other than train.py that read weights, and yield their outcomes."""
    copy = lab.copy()
    name = flip_tensor(copy / NEWEST, _weight, random.Random(0))
    checkpoint = str(copy / NEWEST)
    questions = lab.folder / "train.jsonl"
    commands = [
        (
            "scripts/convert_checkpoint_to_hf.py",
            "--composer_path",
            checkpoint,
            "--hf_output_path",
            str(lab.new() / "hf"),
        ),
        ("scripts/generate.py", checkpoint, "amber", "--max_new_tokens", "2", "--device", "cpu"),
        ("scripts/evaluate.py", checkpoint, "--exact_match", str(questions), "--limit", "2", "--device", "cpu"),
        ("train.py", lab.config, f"load_path={checkpoint}", f"save_folder={lab.new()}", "max_duration=8ba"),
        (
            *("train.py", lab.config, f"load_path={checkpoint}", f"save_folder={lab.new()}", "max_duration=2ba"),
            "load_weights_only=true",
        ),
    ]
    from scripts.bench.faults.processes import run

    for command in commands:
        yield refusal(run(*command), NEWEST, name) or "used a corrupt weight"


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def _remove(file: Path) -> None:
    file.unlink()


def _broken(what: Callable[[Path], None], name: str, lab: Lab) -> Iterator[str]:
    for ranks in (1, 2) if name.endswith(".distcp") else (1,):
        copy = lab.copy(ranks)
        what(copy / NEWEST / name)
        yield lab.outcome(lab.resume(copy, ranks=ranks), copy, NEWEST, name, ranks=ranks)


def _stop(lab: Lab) -> Iterator[str]:
    copy = lab.copy()
    _truncate(copy / NEWEST / "__0_0.distcp")
    yield refusal(lab.resume(copy, "on_corrupt_checkpoint=stop"), NEWEST, "__0_0.distcp") or "not stopped"


def _all_corrupt(lab: Lab) -> Iterator[str]:
    copy = lab.copy()
    for batch in SAVED:
        flip_tensor(copy / f"ep0-ba{batch}", _weight, random.Random(batch))
    yield refusal(lab.resume(copy), *(f"ep0-ba{batch}" for batch in SAVED)) or "continued training"


def _leftovers(lab: Lab, leave: Callable[[Path], list[Path]]) -> str:
    copy = lab.copy()
    left = leave(copy)
    ended = lab.resume(copy)
    seen = lab.outcome(ended, copy)
    if seen == SAME and all(f"deleted {path}" in ended.text for path in left):
        return _DELETED
    return f"{seen}, not reported" if seen == SAME else seen


def _incomplete(lab: Lab) -> Iterator[str]:
    def leave(copy: Path) -> list[Path]:
        parts = [copy / ".part-ep0-ba8", copy / ".part-removed-ep0-ba0", copy / ".part-latest"]
        for part in parts:
            shutil.copytree(copy / NEWEST, part)
            (part / "manifest.json").unlink()
        # Create an incomplete checkpoint without torch's index file. Earlier versions wrote this file last, so a killed
        # run could leave such a folder.
        (copy / "ep0-ba7").mkdir()
        shutil.copy(copy / NEWEST / "__0_0.distcp", copy / "ep0-ba7")
        return [*parts, copy / "ep0-ba7"]

    yield _leftovers(lab, leave)


def _keep_one(lab: Lab) -> Iterator[str]:
    """The newest checkpoint is corrupt; the run resumes from the checkpoint before it, and is configured to keep a
    single checkpoint."""
    copy = lab.copy()
    shutil.rmtree(copy / "ep0-ba2")
    name = flip_tensor(copy / NEWEST, _weight, random.Random(0))
    ended = lab.resume(copy, "save_num_checkpoints_to_keep=1")
    seen = lab.outcome(ended, copy, NEWEST, name)
    yield _KEPT if seen == FELL_BACK and [path.name for path in copy.glob("ep*")] == ["ep0-ba8"] else seen


def _keep_one_on_a_bad_disk(lab: Lab) -> Iterator[str]:
    """Like _keep_one, but the checkpoints that the resumed run saves are also corrupt."""
    copy = lab.copy()
    shutil.rmtree(copy / "ep0-ba2")
    flip_tensor(copy / NEWEST, _weight, random.Random(0))
    ended = lab.resume(copy, "save_num_checkpoints_to_keep=1", hook=_flip_what_is_saved)
    if ended.code != 0:
        yield refusal(ended) or "?"
    elif not (copy / MIDDLE).exists():
        yield "last good checkpoint deleted"
    else:
        yield (
            _KEPT_LAST if "ep0-ba8 is corrupt" in ended.text else "last good checkpoint kept, corrupt ones not reported"
        )


def _flip_what_is_saved() -> None:
    """Simulate a disk that flips a bit of each saved checkpoint. Runs inside the training process."""
    from train.checkpoint.saving import background

    save_checkpoint = background.save_checkpoint

    def save(checkpoint: Path, *args, **kwargs):
        saved = save_checkpoint(checkpoint, *args, **kwargs)
        flip_tensor(checkpoint, _weight, random.Random(0))
        return saved

    background.save_checkpoint = save


def _nothing_broken(lab: Lab) -> Iterator[str]:
    for ranks in (1, 2):
        copy = lab.copy(ranks)
        yield lab.outcome(lab.resume(copy, ranks=ranks), copy, ranks=ranks)


CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case("no fault", SAME, _nothing_broken),
        Case("16 random bits in shards", FELL_BACK, _bits),
        Case("flipped bit of Adam's state", FELL_BACK, _moments),
        *(
            Case(f"another {what}", FELL_BACK, partial(_state, key))
            for what, key in {"random state": "random", "clock": "timestamp", "position": "position"}.items()
        ),
        Case("shards of two steps swapped", FELL_BACK, _swapped_steps),
        Case("shards of two runs swapped", FELL_BACK, _swapped_runs),
        Case("checkpoint of another run", FELL_BACK, _another_run),
        Case("checkpoint of another step", FELL_BACK, _another_step),
        Case("flipped bit of a weight: export, generate, evaluate, load_path", REFUSED, _readers),
        Case("truncated shard", FELL_BACK, partial(_broken, _truncate, "__0_0.distcp")),
        Case("missing shard", FELL_BACK, partial(_broken, _remove, "__0_0.distcp")),
        Case("truncated .metadata", FELL_BACK, partial(_broken, _truncate, ".metadata")),
        Case("missing .metadata", FELL_BACK, partial(_broken, _remove, ".metadata")),
        Case("missing state.json", FELL_BACK, partial(_broken, _remove, "state.json")),
        Case("truncated manifest", FELL_BACK, partial(_broken, _truncate, "manifest.json")),
        Case("missing manifest", FELL_BACK, partial(_broken, _remove, "manifest.json")),
        Case("truncated shard, on_corrupt_checkpoint: stop", REFUSED, _stop),
        Case("all checkpoints corrupt", REFUSED, _all_corrupt),
        Case("incomplete checkpoints of killed runs", _DELETED, _incomplete),
        Case("newest checkpoint corrupt, keep 1", _KEPT, _keep_one),
        Case("newest checkpoint corrupt, keep 1, new ones corrupt too", _KEPT_LAST, _keep_one_on_a_bad_disk),
    )
}
