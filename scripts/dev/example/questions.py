"""Generates questions about names and functions in source files, with their answers."""

import ast
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Question = dict[str, str]

MAX_PROMPT = 120
"""Maximum number of characters of a prompt. Questions with longer prompts are omitted, so that a short row can contain
several questions."""
HELDOUT_OF_EACH = 100
SEED = 17


@dataclass(frozen=True)
class Function:
    """A public function or method, as defined in the source file."""

    name: str
    parameters: tuple[str, ...]
    signature: str
    summary: str
    """The first line of the docstring; empty if there is no docstring."""


Kind = Callable[[str], Iterator[Question]]
"""A function that yields questions about a source file."""


def functions(source: str) -> Iterator[Function]:
    """Yield the functions of a source file whose names do not begin with an underscore."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = node.args
            plain = [*arguments.posonlyargs, *arguments.args]
            starred = [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
            names = tuple(each.arg for each in [*plain, *arguments.kwonlyargs, *starred])
            summary = (ast.get_docstring(node) or "").strip().partition("\n")[0].strip()
            yield Function(node.name, names, f"def {node.name}({ast.unparse(arguments)}):", summary)


def name_questions(source: str) -> Iterator[Question]:
    """Yield questions that ask for the name of a function, given the first line of its docstring. Functions whose name
    occurs in this line are skipped."""
    for function in functions(source):
        contained = function.name.lower() in function.summary.lower()
        if len(function.summary) >= 15 and not contained:
            yield _question("Name", function.summary, function.name, about=function.name)


def parameters_questions(source: str) -> Iterator[Question]:
    """Yield questions that ask for the parameters of a function, given its signature. Functions with fewer than two
    parameters are skipped."""
    for function in functions(source):
        if len(function.parameters) >= 2:
            yield _question("Parameters", function.signature, ", ".join(function.parameters), about=function.name)


def kind_questions(source: str) -> Iterator[Question]:
    """Yield questions that ask whether a name belongs to a class, a function or a constant. Only a quarter of the
    functions are used."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield _question("Kind", node.name, "class", about=node.name)
        elif isinstance(node, ast.FunctionDef) and zlib.crc32(node.name.encode()) % 4 == 0:
            yield _question("Kind", node.name, "function", about=node.name)
    for statement in tree.body:
        for target in statement.targets if isinstance(statement, ast.Assign) else ():
            if isinstance(target, ast.Name) and target.id.isupper():
                yield _question("Kind", target.id, "constant", about=target.id)


def _question(task: str, text: str, answer: str, about: str) -> Question:
    return {"prompt": f"{task}: {text}\n", "response": answer, "about": about}


KINDS: dict[str, dict[str, Kind]] = {
    "questions": {"name": name_questions, "parameters": parameters_questions},
    "kinds": {"kind": kind_questions},
}
"""For each file of training questions, the kinds of questions in it. The file of the held-out questions of a kind has
the same name as the kind."""


def make_questions(files: Iterable[Path], heldout: int) -> dict[str, list[Question]]:
    """Return the questions of each file, by file name without suffix. The held-out questions are about every
    `heldout`-th source file, and there are at most 100 of each kind.

    No prompt occurs twice. Names that training questions ask about do not occur in the held-out questions of the same
    kinds.
    """
    train_sources: list[str] = []
    heldout_sources: list[str] = []
    for number, file in enumerate(files, start=1):
        sources = heldout_sources if number % heldout == 0 else train_sources
        sources.append(file.read_text(encoding="utf-8"))
    made: dict[str, list[Question]] = {}
    for file_name, kinds in KINDS.items():
        rng = random.Random(SEED)
        train = [question for kind in kinds.values() for question in _asked(train_sources, kind)]
        known = {question["about"] for question in train}
        for kind_name, kind in kinds.items():
            unseen = [question for question in _asked(heldout_sources, kind) if question["about"] not in known]
            made[f"heldout-{kind_name}"] = rng.sample(unseen, min(HELDOUT_OF_EACH, len(unseen)))
        rng.shuffle(train)
        made[file_name] = train
    return made


def _asked(sources: Sequence[str], kind: Kind) -> list[Question]:
    """Return the questions of a kind, without repeated prompts, long prompts and prompts that are not ASCII."""
    questions = {question["prompt"]: question for source in sources for question in kind(source)}
    return [question for prompt, question in questions.items() if len(prompt) <= MAX_PROMPT and prompt.isascii()]
