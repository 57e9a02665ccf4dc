"""How text is drawn from a model, as it is written on a command line or in a YAML. Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from data.config.sections import Defect, Section
from data.config.values import Count, NotNegative, Range, Seed


def _greedy(sampling: "Sampling") -> Iterator[Defect]:
    if sampling.temperature == 0 and (sampling.top_k is not None or sampling.top_p < 1):
        yield Defect("temperature", "is 0, which is greedy, but top_k or top_p is given: raise it, or leave them out")


@dataclass(frozen=True, kw_only=True)
class Sampling(Section):
    """How the next token is chosen."""

    RULES = (_greedy,)

    max_new_tokens: Count = 256
    """The most tokens that are generated after a prompt."""
    temperature: NotNegative = 0.0
    """What logits are divided by; 0 always takes the most likely token."""
    top_k: Count | None = None
    """Only the k most likely tokens are drawn from."""
    top_p: Annotated[float, Range(gt=0, le=1)] = 1.0
    """Only the most likely tokens that together have this probability are drawn from (Holtzman et al. 2020)."""
    seed: Seed = 0
    """Each prompt draws by itself from (seed, its number): whatever it is in a batch with."""


def room(prompt_length: int, sampling: Sampling, max_seq_len: int) -> int:
    """The most tokens that can follow a prompt, which has at least one; not above 0 when it leaves no room."""
    return min(sampling.max_new_tokens, max_seq_len - prompt_length)
