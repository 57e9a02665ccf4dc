"""Faults: config values that are changed on resume, contain secrets, or point outside the allowed folders."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from scripts.bench.faults.processes import run
from scripts.bench.faults.runs import REFUSED, SAVED, Case, Lab, refusal

_EXPLAINED = "explained"
_REFUSED_EXPLAINED = f"refused, {_EXPLAINED}"
_NOTHING_TO_DO = "nothing to do, exit 0"
_HIDDEN = "neither printed nor written"
_WORD = "wJalrXUtnFEMI/K7MDENG"
_TOKEN = "hf_" + "Ab12" * 8
_LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' }}{% endfor %}{% endfor %}"
_TWO_GIGABYTES = "{{ 'x' * 2**31 }}"


def _changed(key: str, was: str, now: str, lab: Lab) -> Iterator[str]:
    copy = lab.copy()
    now = now.replace("FOLDER", str(lab.folder))
    ended = lab.resume(copy, f"{key}={now}")
    explained = re.search(rf"{re.escape(key)}\s+was .*{re.escape(was)},? now .*{re.escape(now)}", ended.text)
    if ended.crashed or ended.code is None:
        yield str(refusal(ended))
    elif explained:
        yield _REFUSED_EXPLAINED if ended.code else _EXPLAINED
    else:
        yield "refused, not explained" if ended.code else "applied, not explained"


def _at_the_end(lab: Lab) -> Iterator[str]:
    copy = lab.copy()
    ended = lab.resume(copy, f"max_duration={SAVED[-1]}ba")
    yield _NOTHING_TO_DO if ended.code == 0 and "nothing to do" in ended.text else str(refusal(ended) or "not reported")


def _secrets(lab: Lab) -> Iterator[str]:
    folder = lab.new()
    prompts = json.dumps([f"Say {_TOKEN}", f"password={_WORD}"])
    flags = (
        f"callbacks.generate={{prompts: {prompts}, interval: 2ba, max_new_tokens: 1}}",
        f"loggers.file.filename={folder / 'log.txt'}",
        f"save_folder={folder / 'run'}",
        f"max_duration={SAVED[0]}ba",
    )
    ended = run("train.py", lab.config, *flags)
    yield str(refusal(ended)) if ended.code else _found(folder, ended.text, _TOKEN, _WORD)
    ended = run("train.py", lab.config, f"load_path=s3://AKIAIOSFODNN7EXAMPLE:{_WORD}@bucket/ep0-ba2")
    yield _found(folder, ended.text, _WORD) if ended.code == 2 else f"exit code {ended.code}"
    ended = run("train.py", lab.config, f"precision={_TOKEN}")
    yield _found(folder, ended.text, _TOKEN) if ended.code == 2 else f"exit code {ended.code}"


def _found(folder: Path, text: str, *secrets: str) -> str:
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    contents = {"the output": text.encode(), **files}
    names = [name for name, content in contents.items() if any(secret.encode() in content for secret in secrets)]
    return f"in {', '.join(sorted(names))}" if names else _HIDDEN


def _outside(override: str, name: str, lab: Lab) -> Iterator[str]:
    """Run with an override, in which OUTSIDE stands for a folder to which the run must not write."""
    folder = lab.new()
    (folder / "runs").mkdir()
    outside = folder / "outside"
    given = override.replace("OUTSIDE", str(outside))
    flags = () if override.startswith("save_folder") else (f"save_folder={folder / 'runs' / '{run_name}'}",)
    ended = run("train.py", lab.config, *flags, given, f"max_duration={SAVED[0]}ba")
    written = [path.name for path in folder.rglob("ep0-ba2")]
    yield "written there" if written and ended.code == 0 else str(refusal(ended, name))


def _function(lab: Lab) -> Iterator[str]:
    flags = ("train_loader.dataset.preprocessing_fn=subprocess:call", f"save_folder={lab.new()}", "max_duration=2ba")
    ended = run("train.py", lab.config, *flags)
    seen = str(refusal(ended, "preprocessing_fn", "subprocess"))
    yield seen if "standard library" in ended.text else f"called ({seen})"


def _template(template: str, lab: Lab) -> Iterator[str]:
    folder = lab.new()
    shutil.copytree(lab.copy() / "tokenizer", folder / "tokenizer")
    (folder / "tokenizer" / "chat_template.jinja").write_text(template)
    messages = [{"role": "user", "content": "amber"}, {"role": "assistant", "content": "birch"}]
    (folder / "chat.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * 100)
    flags = (
        f"tokenizer={{name: {folder / 'tokenizer'}}}",
        f"train_loader.dataset.hf_kwargs.data_files={folder / 'chat.jsonl'}",
        f"save_folder={folder / 'run'}",
        f"max_duration={SAVED[0]}ba",
    )
    ended = run("train.py", lab.config, *flags, seconds=30)
    limit = "takes more than" in ended.text or "needs more than" in ended.text
    yield REFUSED if ended.code and not ended.crashed and limit else refusal(ended) or "rendered"


_CHANGES = {
    "algorithms.gradient_clipping.clipping_threshold": ("1.0", "0.5", _EXPLAINED),
    "scheduler.t_warmup": ("2ba", "3ba", _EXPLAINED),
    "model.resid_pdrop": ("0.1", "0.2", _EXPLAINED),
    "train_loader.dataset.hf_kwargs.data_files": ("train.jsonl", "FOLDER/other.jsonl", _REFUSED_EXPLAINED),
    "model.n_layers": ("2", "3", _REFUSED_EXPLAINED),
}

CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        *(
            Case(f"changed on resume: {key}", expected, partial(_changed, key, was, now))
            for key, (was, now, expected) in _CHANGES.items()
        ),
        Case("resumed at max_duration", _NOTHING_TO_DO, _at_the_end),
        Case("secrets in URLs and in other values", _HIDDEN, _secrets),
        Case("run_name: ../x", REFUSED, partial(_outside, "run_name=../x", "run_name")),
        Case("run_name: absolute", REFUSED, partial(_outside, "run_name=OUTSIDE/x", "run_name")),
        Case(
            "{run_name.__class__} in save_folder",
            REFUSED,
            partial(_outside, "save_folder='OUTSIDE/{run_name.__class__}'", "save_folder"),
        ),
        Case("preprocessing_fn: subprocess:call", REFUSED, _function),
        Case("chat template that loops", REFUSED, partial(_template, _LOOP)),
        Case("chat template that builds 2 GB", REFUSED, partial(_template, _TWO_GIGABYTES)),
    )
}
