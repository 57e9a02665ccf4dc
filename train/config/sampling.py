"""Sampling settings for text generation, from a command line or a YAML. Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from data.config.sections import Defect, Section
from data.config.values import Count, NotNegative, Range, Seed


def _greedy(sampling: "Sampling") -> Iterator[Defect]:
    if sampling.temperature == 0 and (sampling.top_k is not None or sampling.top_p < 1):
        yield Defect(
            "temperature",
            "is 0 (greedy decoding), but top_k or top_p is set: set a temperature above 0, or remove top_k and top_p",
        )


@dataclass(frozen=True, kw_only=True)
class Sampling(Section):
    """How the next token is chosen."""

    RULES = (_greedy,)

    max_new_tokens: Count = 256
    """Maximum number of tokens generated after a prompt."""
    temperature: NotNegative = 0.0
    """The sampling temperature, by which logits are divided. `0` always selects the most likely token."""
    top_k: Count | None = None
    """Sample only from the k most likely tokens."""
    top_p: Annotated[float, Range(gt=0, le=1)] = 1.0
    """Sample only from the most likely tokens that together have this probability (nucleus sampling)."""
    seed: Seed = 0
    """Random seed for sampling. The random numbers for a prompt depend only on the seed and the number of the prompt.
    Therefore, the text generated for a prompt does not depend on the other prompts in a batch."""


def room(prompt_length: int, sampling: Sampling, max_seq_len: int) -> int:
    """Return the maximum number of tokens that can be generated after a prompt of at least one token. It is 0 or
    negative if the prompt is too long."""
    return min(sampling.max_new_tokens, max_seq_len - prompt_length)
