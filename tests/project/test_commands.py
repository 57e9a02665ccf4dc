"""Every command of README.md, CONTRIBUTING.md and docs/ is executed here, by a named test or by `make proof`, or is
listed with the reason why not.

Commands that start a program of this repository run unchanged unless tests/helpers/command_rules.py names them. The
commands of a page run in their order, in a folder of their own: a clone after `make quickstart`, but with a model that
was trained for 2 batches.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_rules import NEEDED, RULES, TINY, Elsewhere, Proof, Run, rule_of
from tests.helpers.fenced_commands import FencedCommand, commands_of, commands_of_pages, split_shell
from tests.helpers.run_command import (
    EXPORT,
    ROOT,
    Ended,
    Program,
    program_of,
    refused_arguments,
    run_program,
    run_shell,
)

COMMANDS = commands_of_pages(ROOT)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the repository after a short `make quickstart`."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("train.py", "train", "data", "scripts", "tests", ".venv"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("yamls", "docs", "quickstart"):
        shutil.copytree(ROOT / name, folder / name)
    for file in (*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"):
        shutil.copy(file, folder)
    tiny = [f"{key}={value}" for key, value in TINY.items()]
    for program in (
        Program("train.py", ["yamls/finetune/dbrx_tiny.yaml", *tiny], ranks=2),
        Program(
            EXPORT,
            ["--composer_path", "runs/dbrx_tiny/checkpoints", "--hf_output_path", "runs/dbrx_tiny/hf"],
        ),
    ):
        ended = run_program(program, folder)
        assert ended.code == 0, ended.output
    return folder


@dataclass(frozen=True)
class Done:
    """A command that has run on a page."""

    ended: Ended
    folder: Path
    files: list[Path]
    """The files that it wrote, relative to the folder."""


class Pages:
    """The folders in which the commands of the pages run."""

    def __init__(self, clone: Path, root: Path) -> None:
        self._clone, self._root = clone, root
        self._done: dict[str, list[Done]] = {}
        self._by_text: dict[str, Done] = {}

    def run(self, command: FencedCommand) -> Ended:
        """How a command ended. The commands before it on its page have run before it."""
        commands = [other for other in COMMANDS if other.page == command.page]
        folder = self._root / command.page.replace("/", "-")
        if command.page not in self._done:
            self._done[command.page] = []
            shutil.copytree(self._clone, folder, symlinks=True)
            for name in NEEDED.get(command.page, ()):
                provide(folder, name)
        done = self._done[command.page]
        for other in commands[len(done) : commands.index(command) + 1]:
            done.append(self._run(other.text, folder))
        return done[commands.index(command)].ended

    def _run(self, text: str, folder: Path) -> Done:
        """Run a command, unless it has run on another page: then its files are copied from there."""
        rule = rule_of(text)
        if not isinstance(rule, Run):
            return Done(Ended(0, ""), folder, [])
        known = self._by_text.get(text)
        if known is not None and known.folder != folder:
            for file in known.files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(known.folder / file, folder / file, follow_symlinks=False)
            return known
        before = written(folder)
        ended = run(text, rule, folder)
        done = Done(ended, folder, [file for file, time in written(folder).items() if before.get(file) != time])
        return self._by_text.setdefault(text, done)


def written(folder: Path) -> dict[Path, int]:
    """The files below a folder, with the time of their last change."""
    files = [Path(place, name) for place, _, names in os.walk(folder) for name in names]
    links = [
        Path(place, name) for place, names, _ in os.walk(folder) for name in names if Path(place, name).is_symlink()
    ]
    return {file.relative_to(folder): file.lstat().st_mtime_ns for file in (*files, *links)}


@pytest.fixture(scope="module")
def pages(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return Pages(clone, tmp_path_factory.mktemp("pages"))


def provide(folder: Path, name: str) -> None:
    """Create a configuration, a run or a part of a run that a page expects."""
    if name.startswith("runs/"):
        _, _, *part = Path(name).parts
        shutil.copytree(Path(folder, "runs", "dbrx_tiny", *part), folder / name, symlinks=True)
    else:
        text = (folder / "yamls" / "finetune" / "dbrx_tiny.yaml").read_text("utf-8")
        (folder / name).write_text(text.replace("run_name: dbrx_tiny", "run_name: another"), "utf-8")


def run(text: str, rule: Run, folder: Path) -> Ended:
    program = program_of(text)
    if program is None:
        assert not rule.values, f"{text}: only programs of this repository have configuration keys"
        return run_shell(text, folder)
    arguments = [word for word in program.arguments if word.partition("=")[0] not in rule.values]
    arguments += [*rule.more, *(f"{key}={value}" for key, value in rule.values.items())]
    return run_program(Program(program.script, arguments, program.ranks, program.env), folder)


def commands_by(kind: type, *, once: bool = False) -> list[Any]:
    """The commands with a rule of this kind. once: those that several pages contain only for the first page."""
    commands = [command for command in COMMANDS if isinstance(rule_of(command.text), kind)]
    if once:
        commands = list({command.text: command for command in reversed(commands)}.values())[::-1]
    return [
        pytest.param(command, id=f"{command.page}:{command.line}: {' '.join(command.text.split())[:100]}")
        for command in commands
    ]


def test_every_command_has_one_rule() -> None:
    unknown = [f"{c.page}:{c.line}: {c.text}" for c in COMMANDS if rule_of(c.text) is None]
    assert unknown == [], "add a rule for each of them to RULES, and only one"


def test_every_rule_matches_a_command() -> None:
    texts = [command.text for command in COMMANDS]
    unused = [rule.pattern for rule in RULES if not any(re.fullmatch(rule.pattern, text, re.DOTALL) for text in texts)]
    assert unused == [], "delete these rules"
    pages = {command.page for command in COMMANDS}
    assert set(NEEDED) <= pages


def test_files_of_commands_that_do_not_run_here_exist() -> None:
    texts = sorted({command.text for command in COMMANDS if not isinstance(rule_of(command.text), Run)})
    named = {name for text in texts for name in re.findall(r"(?<![\w/])(?:scripts|yamls|tests)/[\w./-]+", text)}
    assert len(named) > 10
    assert {name for name in named if not (ROOT / name).exists()} == set()
    # Only the arguments of a known program can be parsed.
    started = [text for text in texts if re.match(r"composer |torchrun |srun python |python (train|scripts)\b", text)]
    assert [text for text in started if program_of(text) is None] == []


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.subprocess
@pytest.mark.parametrize("command", commands_by(Run))
def test_a_command_runs(command: FencedCommand, pages: Pages) -> None:
    if shutil.which(command.text.split()[0]) is None and command.text.split()[0] == "jq":
        pytest.skip("jq is not installed")
    rule, ended = rule_of(command.text), pages.run(command)
    assert isinstance(rule, Run)
    assert ended.code == rule.code, ended.output[-3000:]


@pytest.mark.slow
@pytest.mark.ranks
def test_programs_that_run_elsewhere_or_with_other_values_accept_their_arguments() -> None:
    texts = set()
    for command in COMMANDS:
        rule = rule_of(command.text)
        if isinstance(rule, Elsewhere) or (isinstance(rule, Run) and rule.values):
            texts.add(command.text)
    programs = [program for text in sorted(texts) if (program := program_of(text)) is not None]
    refused = zip(programs, refused_arguments(programs), strict=True)
    assert [(program, error) for program, error in refused if error is not None] == []


def test_make_targets_and_named_tests_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for command in COMMANDS:
        name, *rest = command.text.split()
        if name == "make":
            assert {word for word in rest if "=" not in word} <= targets, command
    for rule in RULES:
        if isinstance(rule, Elsewhere) and rule.test:
            file, _, name = rule.test.partition("::")
            assert f"\ndef {name}(" in (ROOT / file).read_text("utf-8"), rule.test


@pytest.mark.proof
@pytest.mark.parametrize("command", commands_by(Proof, once=True))
def test_a_long_command_runs(command: FencedCommand, tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    assert run_shell(f"git clone --quiet {ROOT} {folder} && ln -s {ROOT}/.venv {folder}/.venv", tmp_path).code == 0
    for name in ("pyproject.toml", "requirements.lock"):
        os.utime(folder / name, (0, 0))  # older than the environment, or make would install the clone into it
    ended = run_shell(command.text, folder, timeout=0)
    assert ended.code == 0, ended.output[-3000:]


def test_commands_are_found_in_a_page() -> None:
    page = (
        "# Title\n\n```bash\n# comment\npython a.py \\\n    --b 'c # d'  # comment\nmake x && make y; make z\n"
        "cat > f <<'EOF'\nnot; a # command\nEOF\nfor x in 1 2; do\n  echo $x\ndone\n```\n\n"
        "```\n$ python b.py\noutput\n```\n\n1. Item\n\n   ```sh\n   ls\n   ```\n\n```yaml\nkey: value\n```\n"
    )
    assert [(command.line, command.text) for command in commands_of("page", page)] == [
        (5, "python a.py --b 'c # d'"),
        (7, "make x"),
        (7, "make y"),
        (7, "make z"),
        (8, "cat > f <<'EOF'\nnot; a # command\nEOF"),
        (11, "for x in 1 2; do\n  echo $x\ndone"),
        (17, "python b.py"),
        (24, "ls"),
    ]
    with pytest.raises(ValueError, match="a quote is not closed"):
        list(split_shell("echo 'a"))


@pytest.mark.ranks
@pytest.mark.subprocess
def test_a_wrong_flag_or_key_is_refused() -> None:
    invalid = (
        "python scripts/plan.py yamls/finetune/dbrx.yaml --nods 8",
        "composer -n 2 train.py yamls/finetune/dbrx.yaml optimizer.lrr=1",
        "srun python scripts/doctor.py yamls/finetune/dbrx.yaml seeed=1",
        "python train.py --explian seed",
        "python scripts/dev/package_tables.py --write",
    )
    right = "A=1 python scripts/doctor.py --json x"
    programs = [program for text in (*invalid, right) if (program := program_of(text)) is not None]
    errors = refused_arguments(programs)
    assert len(errors) == len(invalid) + 1
    assert all(errors[:-1])
    assert errors[-1] is None
