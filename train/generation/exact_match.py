"""Counts the held-out prompts for which a model generates exactly the expected answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from train.config.sampling import Sampling
from train.generation.ask import ask
from train.generation.open_model import Opened
from train.generation.questions import Question, encode, expected_answer
from train.generation.results import Result


@dataclass(frozen=True)
class Checked:
    """A question and the model's greedy answer."""

    question: Question
    answer: str

    @property
    def exact(self) -> bool:
        return self.answer == expected_answer(self.question)


def exact_match(opened: Opened, questions: Sequence[Question], batch_size: int) -> list[Checked]:
    """Return the greedy answers in order, each without its end token. An answer is exact if it equals the expected
    text.

    Raises DataError if a prompt is so long that no tokens can be generated within max_seq_len.
    """
    expected = [len(opened.tokenizer.encode(expected_answer(question))) for question in questions]
    # The limit includes the end token and one more token, so that an answer that is longer than expected is detected.
    sampling = Sampling(max_new_tokens=max(expected) + 2)
    answers = ask(opened, encode(questions, opened, sampling), sampling, batch_size)
    return [Checked(question, answer.text) for question, answer in zip(questions, answers, strict=True)]


def exact_match_result(checked: Sequence[Checked]) -> Result:
    share = sum(one.exact for one in checked) / len(checked)
    stderr = (share * (1 - share) / len(checked)) ** 0.5
    return {"asked": len(checked), "metrics": {"exact_match": share}, "stderr": {"exact_match": stderr}}
