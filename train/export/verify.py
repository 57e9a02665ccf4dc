"""Verify an exported folder, using only its files, the checkpoint and unmodified transformers.

`python -m train.export.verify FOLDER --composer_path CHECKPOINT`, in any environment with transformers 4.53 or newer.
This file checks files, names, shapes and bytes; verify_logits.py checks the logits that transformers computes from
them.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from data.base.errors import ConfigError, cannot_be
from data.base.paths import is_file_name, refuse_path_arguments, shown
from data.hub.repository_files import TEMPLATES, check_json_files, refuse_code_beside
from data.tokenization.templates.limits import TemplateLimits
from data.tokenization.templates.sandbox import render_chat
from train.export.export import EXIT_NOT_FINITE, Run, open_run
from train.export.verify_logits import check_logits, written_rows
from train.hf.config_json import config_json
from train.hf.finite import is_finite, of_checkpoint
from train.hf.repository import INDEX
from train.hf.safetensors_file import Stored, header, read_header
from train.models.precision import BY_DTYPE, FORMATS, Precision
from train.models.shapes import parameter_shapes

_ABSENT = object()
_BESIDE = ("config.json", INDEX, "README.md", "evaluation.json")
"""Files that a complete folder may contain in addition to the files of the weights and the tokenizer."""


class CheckpointNotFinite(ConfigError):
    """The weights of the checkpoint itself are not finite, so no export of it can be used."""


def verify(folder: Path, checkpoint: Path) -> list[str]:
    """Verify the folder, and return lines that describe what was verified. Raises ConfigError with the first defect and
    the name of its file."""
    run = open_run(checkpoint)
    check_json_files(folder)
    refuse_code_beside(folder)
    precision = _check_config(folder, run)
    _check_files(folder, run)
    _check_tokenizer(folder, run)
    tensors = _check_weights(folder, run, precision)
    return [
        f"{len(tensors)} tensors with the names and shapes of stock DBRX, byte-identical to the checkpoint",
        "config, tokenizer, end-of-text tokens and chat template agree",
        *check_logits(folder, run, precision, tensors),
    ]


def _defect(name: str, what: object) -> ConfigError:
    return ConfigError(f"{name} {what}")


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        contents = json.loads((folder / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(cannot_be("read", name, error)) from None
    except ValueError:
        raise _defect(name, "is not JSON") from None
    except RecursionError:
        raise _defect(name, "is nested too deeply to be read") from None
    if not isinstance(contents, dict):
        raise _defect(name, "does not contain a mapping")
    return contents


def _check_config(folder: Path, run: Run) -> Precision:
    found = _read_json(folder, "config.json")
    precision = BY_DTYPE.get(str(found.get("torch_dtype")))
    if precision is None:
        raise _defect("config.json", f"has torch_dtype {found.get('torch_dtype')}, expected {' or '.join(BY_DTYPE)}")
    expected = json.loads(json.dumps(config_json(run.config.model, run.generation, FORMATS[precision].dtype)))
    for key in sorted({*found, *expected}):
        if found.get(key, _ABSENT) != expected.get(key, _ABSENT):
            raise _defect("config.json", f"has {key} {found.get(key)}, but the checkpoint has {expected.get(key)}")
    return precision


def _check_files(folder: Path, run: Run) -> None:
    """Check that the tokenizer's files are those of the run, and that there is no other file that a loader could
    read."""
    if not (folder / "README.md").is_file():
        raise _defect("README.md", "is missing")
    tokenizer, found = _files(run.tokenizer), _files(folder)
    for name, file in tokenizer.items():
        if name not in found or not found[name].is_file():
            raise _defect(name, "is missing")
        if found[name].read_bytes() != file.read_bytes():
            raise _defect(name, "differs from the file that the run wrote next to its checkpoints")
    known = {*_weight_map(folder).values(), *_BESIDE, *tokenizer}
    for name in found:
        if name not in known and not _is_harmless(name):
            raise _defect(name, "does not belong to the export")


def _files(folder: Path) -> dict[str, Path]:
    """Return all files in a folder, and links to folders. Raises ConfigError for Python files, and for files in
    subfolders, except for chat templates and hidden files."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    files = {path.relative_to(folder).as_posix(): path for path in found}
    for name in files:
        below = name.rpartition("/")[0]
        if name.endswith(".py") or (below not in ("", TEMPLATES) and not name.startswith(".")):
            raise _defect(name, "does not belong to the export")
    return files


def _is_harmless(name: str) -> bool:
    """Whether the file is a license, is hidden, or is in a hidden folder. transformers does not read these files."""
    return name.startswith((".", "LICENSE", "NOTICE"))


def _weight_map(folder: Path) -> dict[str, str]:
    index = _read_json(folder, INDEX)
    if not isinstance(index.get("weight_map"), dict):
        raise _defect(INDEX, "has no weight_map")
    for name in index["weight_map"].values():
        if not isinstance(name, str) or not is_file_name(name):
            raise _defect(INDEX, f"lists {shown(name)}, which is not a file of the folder")
    return index["weight_map"]


def _check_tokenizer(folder: Path, run: Run) -> None:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    config, generation = (
        transformers.AutoConfig.from_pretrained(folder),
        transformers.GenerationConfig.from_pretrained(folder),
    )
    stops = run.generation["eos_token_id"]
    ends = {"config.json": config.eos_token_id, "generation_config.json": generation.eos_token_id}
    for name, found in ends.items():
        if found != stops:
            raise _defect(name, f"has eos_token_id {found}, but the checkpoint's tokenizer has {stops}")
    if tokenizer.eos_token_id not in stops:
        raise _defect(
            "the tokenizer", f"has eos_token_id {tokenizer.eos_token_id}, but generation stops at the tokens {stops}"
        )
    if len(tokenizer) > run.config.model.vocab_size:
        raise _defect(
            "the tokenizer", f"has {len(tokenizer)} tokens, but the model's vocab_size is {run.config.model.vocab_size}"
        )
    if tokenizer.chat_template is None:
        return
    words = ("How many legs has a spider?", "Eight.")
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), words, strict=True)]
    try:
        # Both functions are called: render_chat enforces the limits reliably, and users of the export call
        # apply_chat_template.
        render_chat(tokenizer, messages, subject="it", strftime=datetime.now().strftime)
        with TemplateLimits("it"):
            text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # the template and jinja can raise any error
        raise _defect("the chat template", f"does not render {messages}: {error}") from None
    if not all(word in text for word in words):
        raise _defect("the chat template", f"renders {messages} as {text!r}")


def _check_weights(folder: Path, run: Run, precision: Precision) -> dict[str, tuple[Path, Stored]]:
    """Check the index, headers, names and shapes, and every byte.

    Raises CheckpointNotFinite if all of these match, but some numbers are NaN or infinite.
    """
    shapes, weight_map, dtype = parameter_shapes(run.config.model), _weight_map(folder), FORMATS[precision].torch_dtype
    stock = _stock_shapes(folder)
    if stock != shapes:
        differ = sorted(name for name in {*stock, *shapes} if stock.get(name) != shapes.get(name))
        raise _defect("config.json", f"makes transformers expect different tensors, such as {differ[0]}")
    if list(weight_map) != list(shapes):
        raise _defect(
            INDEX,
            f"does not list exactly the tensors of DBRX; it differs in {sorted({*weight_map} ^ {*shapes})[:3]}",
        )
    tensors: dict[str, tuple[Path, Stored]] = {}
    for file in dict.fromkeys(folder / name for name in weight_map.values()):
        inside = {name: shapes[name] for name, place in weight_map.items() if place == file.name}
        begin = header(inside, precision)
        try:
            tensors |= {name: (file, stored) for name, stored in read_header(file).items()}
            with file.open("rb") as stream:
                same = stream.read(len(begin)) == begin
        except OSError as error:
            raise ConfigError(cannot_be("read", file.name, error)) from None
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if not same:
            raise _defect(file.name, "has a header that does not match the tensors that the index lists for this file")
    total = sum(stored.stop - stored.start for _, stored in tensors.values())
    if _read_json(folder, INDEX).get("metadata") != {"total_size": total}:
        raise _defect(INDEX, f"does not have the correct total_size, which is {total}")
    not_finite: dict[str, None] = {}
    for name, (file, _) in tensors.items():
        for start, rows in written_rows(tensors, name, dtype):
            expected = torch.empty_like(rows)
            run.source.rows(name, start, start + len(rows), expected)
            if not torch.equal(expected.view(torch.uint8), rows.view(torch.uint8)):
                raise _defect(
                    file.name, f"differs from the checkpoint in rows {start} to {start + len(rows)} of {name}"
                )
            if not is_finite(rows):
                not_finite[name] = None
    if not_finite:
        raise CheckpointNotFinite(of_checkpoint(run.checkpoint, list(not_finite)))
    return tensors


def _stock_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        stock = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    return {name: tuple(tensor.shape) for name, tensor in stock.state_dict().items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.export.verify", description=__doc__)
    parser.add_argument("folder", type=Path, help="the exported folder")
    what = "the checkpoint from which the folder was exported, inside its save folder"
    parser.add_argument("--composer_path", type=Path, required=True, help=what)
    args = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    try:
        refuse_path_arguments(args, "folder", "--composer_path")
        for line in verify(args.folder, args.composer_path):
            print(f"verified: {line}", flush=True)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_NOT_FINITE if isinstance(error, CheckpointNotFinite) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
