"""Every message that docs/troubleshooting.md quotes is in the code that raises it."""

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from data.base.errors import ConfigError, DataError
from data.preparation.prepare import prepare
from tests.helpers.prepared import TOY
from tests.helpers.toy_tokenizer import dataset_config, write_jsonl
from train.config.load import read_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
ENTRIES = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)
OTHERS = {
    "Failed to find C compiler": "triton/runtime/build.py",
    "Too many open files": "torch/utils/data/dataloader.py",
    "DataLoader worker (pid(s)": "torch/utils/data/dataloader.py",
    "Rank ... crashed": "composer/cli/launcher.py",
    "Reused local directory": "streaming/base/shared/prefix.py",
    "but Transformers does not recognize": "transformers/models/auto/configuration_auto.py",
}
"""Messages of libraries, and the files that raise them."""
NOT_IN_PYTHON = ("composer: command not found", "CUDA out of memory", "Watchdog caught", "ncclSystemError")
"""Messages of the shell and of compiled code."""
CONFIGS = {
    "... is not a key; did you mean ...?": "optimizer.lrr=1",
    "... is ..., but it must be ...": "optimizer.lr=-1",
    "a plain number means epochs in Composer and LLM Foundry; in Dropless, write ...": "max_duration=10",
    "... is not key=value": "optimizer.lr",
    "scheduler.t_warmup is ..., but max_duration is only ...": "max_duration=5ba",
}
"""Messages of the configuration, and an override of dbrx_tiny.yaml that raises each."""
ROWS = {
    "... rows cannot be used": {"question": "q", "answer": "a"},
    "prompt and response are missing (the row has ...)": {"question": "q", "answer": "a"},
}
"""Messages about data, and a row that raises each."""
RAISED = {*CONFIGS, *ROWS}


def is_in_python(message: str) -> bool:
    return not message.startswith(NOT_IN_PYTHON)


def literals(path: Path) -> Iterator[str]:
    """The string literals of a file, with ... for the values of f-strings."""
    if path.suffix != ".py":
        yield path.read_text("utf-8")
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)


def library_file(name: str) -> Path:
    package, _, file = name.partition("/")
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / file


@pytest.fixture(scope="module")
def ours() -> str:
    files = [path for folder in ("train", "data", "scripts") for path in (ROOT / folder).rglob("*.py")]
    return "\0".join(text for path in (*files, ROOT / "Makefile") for text in literals(path))


def fragments(message: str) -> list[str]:
    """The parts of a message between its values. Keys at its beginning come from elsewhere than the text after them."""
    words = re.sub(r"^(stopped: )?[\w.]+ (?=is )", "", message)
    return [part.strip(" :;?()") for part in words.split("...") if len(part.strip(" :;?(),.")) > 3]


@pytest.mark.parametrize("message", [entry for entry in ENTRIES if entry not in RAISED and is_in_python(entry)])
def test_a_quoted_message_is_in_the_code(message: str, ours: str) -> None:
    other = next((file for start, file in OTHERS.items() if message.startswith(start)), None)
    text = ours if other is None else "\0".join(literals(library_file(other)))
    assert fragments(message)
    assert [part for part in fragments(message) if part not in text] == []


@pytest.mark.parametrize(("message", "override"), CONFIGS.items())
def test_a_quoted_message_about_the_configuration_is_raised(message: str, override: str) -> None:
    assert message in ENTRIES
    with pytest.raises(ConfigError, match=pattern(message)):
        read_config(str(ROOT / "yamls" / "finetune" / "dbrx_tiny.yaml"), [override])


@pytest.mark.parametrize(("message", "row"), ROWS.items())
def test_a_quoted_message_about_data_is_raised(message: str, row: dict[str, str], tmp_path: Path) -> None:
    assert message in ENTRIES
    write_jsonl(tmp_path / "train.jsonl", [row, row])
    with pytest.raises(DataError, match=pattern(message)):
        prepare(dataset_config(tmp_path), TOY)


def pattern(message: str) -> str:
    return ".+".join(map(re.escape, message.removeprefix("... ").split("...")))


def test_the_page_has_each_message_once() -> None:
    assert len(set(ENTRIES)) == len(ENTRIES) >= 40
    for start in (*OTHERS, *NOT_IN_PYTHON):
        assert any(message.startswith(start) for message in ENTRIES), start
