"""How text is drawn from a model, as it is written on a command line or in a YAML. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Checks raise ValueError with the field's name."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """What logits are divided by; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Only so many of the likeliest tokens are drawn from."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability are drawn from (Holtzman et al. 2020)."""
    seed: int = 0
    """Each prompt draws by itself from (seed, its number): whatever it is in a batch with."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, but at least 1 is needed")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}, but it cannot be negative (0 is greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, but at least 1 token must be left")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, but it is a probability in (0, 1]")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}, but it must be in [0, 2**32)")
        if self.temperature == 0 and (self.top_k is not None or self.top_p < 1):
            raise ValueError(
                "temperature is 0, which is greedy, but top_k or top_p is given: raise it, or leave them out"
            )


def room(prompt_length: int, sampling: Sampling, max_seq_len: int) -> int:
    """The most tokens that can follow a prompt, which has at least one; not above 0 when it leaves no room."""
    return min(sampling.max_new_tokens, max_seq_len - prompt_length)
