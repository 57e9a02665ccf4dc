"""Recognize the names of secrets, such as `hf_token`."""

import re

AWS_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_OF_WORD = {"hf": "HF_TOKEN", "hub": "HF_TOKEN", "wandb": "WANDB_API_KEY", "aws": AWS_KEYS}
"""Word in a secret's name -> the environment variables that contain the secret."""

_SECRET = re.compile(
    r"password|passwd|passphrase|pwd|secret|credential|(api|access|secret|private)key|(auth|access)token"
)
_KIND_OF_KEY = re.compile(
    r"api|access|secret|private|auth|account|encryption|signing|service|shared|master|client|storage|subscription|ssh"
    r"|hf|wandb|aws|azure|gcs|openai|anthropic"
)
"""If one of these words comes before `key`, the name refers to a secret. Other keys, such as the keys of mappings, are
not secrets."""
_TOKEN_OF_TEXT = re.compile(
    r"eos|bos|pad|unk|sep|cls|mask|start|end|begin|stop|special|additional|added|extra|think|image|audio|video|system"
    r"|assistant|role|turn|first|last|next|previous|prev|new|per|each|every|memory|prefix|suffix|middle|sentinel|prompt"
    r"|response|text|byte|chat|tool|loss|current|final|initial"
)
"""If one of these words comes before `token`, the name refers to a token of text, which is not a secret."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def is_secret_name(name: str) -> bool:
    """Whether a key, parameter or variable with this name contains a secret: `hf_token`, `AWS_SECRET_ACCESS_KEY`,
    `hf_kwargs.token`; but not `eos_token`, `max_new_tokens`, `tokenizer` or `key`."""
    words = [word.lower() for word in _WORD.findall(name.rpartition(".")[2])]
    before, last = ("", "", *words)[-2:]
    if last == "token":
        return _TOKEN_OF_TEXT.fullmatch(before) is None
    if last == "key":
        return _KIND_OF_KEY.fullmatch(before) is not None
    return words[-3:] == ["access", "key", "id"] or _SECRET.fullmatch(last) is not None


def variable_of(name: str) -> str:
    """The environment variables that contain the secret with this name; empty if unknown."""
    words = [word.lower() for word in _WORD.findall(name)]
    return next((variable for word, variable in _OF_WORD.items() if word in words), "")
