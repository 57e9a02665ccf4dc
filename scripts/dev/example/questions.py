"""Makes questions about the functions in source files, with their answers."""

import ast
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Question = dict[str, str]

MAX_PROMPT = 120
"""Maximum number of characters in a prompt, so that a short row can contain several questions."""
HELDOUT_OF_EACH = 100
SEED = 17


@dataclass(frozen=True)
class Function:
    """A public function or method, according to its source code."""

    name: str
    parameters: tuple[str, ...]
    signature: str
    summary: str
    """The first line of its docstring, or an empty string if it has none."""


Kind = Callable[[Function], Question | None]


def functions(source: str) -> Iterator[Function]:
    """Yield the functions in a source file whose names do not begin with an underscore."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = node.args
            plain = [*arguments.posonlyargs, *arguments.args]
            starred = [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
            names = tuple(each.arg for each in [*plain, *arguments.kwonlyargs, *starred])
            summary = (ast.get_docstring(node) or "").strip().partition("\n")[0].strip()
            yield Function(node.name, names, f"def {node.name}({ast.unparse(arguments)}):", summary)


def name_question(function: Function) -> Question | None:
    """Ask for the function's name, given the first line of its docstring. Returns None if the line contains the
    name."""
    prompt = f"Name: {function.summary}\n"
    if len(function.summary) < 15 or len(prompt) > MAX_PROMPT or not prompt.isascii():
        return None
    if function.name.lower() in function.summary.lower():
        return None
    return {"prompt": prompt, "response": function.name, "function": function.name}


def parameters_question(function: Function) -> Question | None:
    """Ask for the function's parameters, given its signature. Returns None if it has fewer than two parameters."""
    prompt = f"Parameters: {function.signature}\n"
    if len(function.parameters) < 2 or len(prompt) > MAX_PROMPT or not prompt.isascii():
        return None
    response = ", ".join(function.parameters)
    return {"prompt": prompt, "response": response, "function": function.name}


def class_name_question(function: Function) -> Question | None:
    """Ask for the function's name in the form of a class name. Returns None if the name is a single word."""
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", function.name) or len(function.name) > 24:
        return None
    response = "".join(word.capitalize() for word in function.name.split("_"))
    return {"prompt": f"Class: {function.name}\n", "response": response, "function": function.name}


KINDS: dict[str, dict[str, Kind]] = {
    "questions": {"name": name_question, "parameters": parameters_question},
    "class_names": {"class": class_name_question},
}
"""For each file of training questions, its kinds of questions. The held-out questions of kind KIND are in the file
heldout-KIND."""


def make_questions(files: Iterable[Path], heldout: int) -> dict[str, list[Question]]:
    """Return the questions by file name without suffix. At most 100 questions of each kind, from every heldout-th
    source file, are held out.

    No prompt occurs twice. A held-out question is never about a name that occurs in a training question of its file.
    """
    sides: dict[bool, list[Function]] = {False: [], True: []}
    for number, file in enumerate(files, start=1):
        sides[number % heldout == 0] += functions(file.read_text(encoding="utf-8"))
    made: dict[str, list[Question]] = {}
    for file_name, kinds in KINDS.items():
        rng = random.Random(SEED)
        train = [question for kind in kinds.values() for question in _asked(sides[False], kind)]
        known = {question["function"] for question in train}
        for kind_name, kind in kinds.items():
            unseen = [question for question in _asked(sides[True], kind) if question["function"] not in known]
            made[f"heldout-{kind_name}"] = rng.sample(unseen, min(HELDOUT_OF_EACH, len(unseen)))
        rng.shuffle(train)
        made[file_name] = train
    return made


def _asked(found: Sequence[Function], kind: Kind) -> list[Question]:
    questions = {question["prompt"]: question for function in found if (question := kind(function)) is not None}
    return list(questions.values())
