"""Errors of a converter: a YAML file's keys are replaced by the flags of the command line."""

import re

FLAGS = {
    "hf_name": "--dataset",
    "hf_kwargs.name": "--data_subset",
    "hf_kwargs.data_dir": "--dataset",
    "hf_kwargs.data_files": "--data_files",
    "preprocessing_fn": "--preprocessor",
    "prepare_workers": "--num_workers",
    "on_bad_example": "--on_bad_example",
    "excess_length": "--excess_length",
    "tokenizer.name": "--tokenizer",
    "tokenizer.kwargs.": "--tokenizer_kwargs ",
    "tokenizer.chat_template_drops": "--chat_template_drops",
    "tokenizer.chat_date": "--chat_date",
}
"""What a YAML file calls it, and its flag."""
FIRST_FLAGS = {
    **{key: f"--{key}" for key in ("compression", "max_seq_len", "packing", "target_prompts", "target_responses")},
    "split": "--splits",
    "text": "--path",
}
"""Keys that are words as well, or flags already: only where a message begins with them."""
_KEYS = re.compile(
    # What stands in quotes is somebody's own.
    r"(?<!\w)'[^'\n]*'|(?<!\w)\"[^\"\n]*\"|"
    rf"^(?P<first>{'|'.join(FIRST_FLAGS)})(?= (?:is|has) )|"
    rf"(?<![\w.-])(?P<key>{'|'.join(map(re.escape, sorted(FLAGS, key=len, reverse=True)))})"
    # The value, where one is suggested: a word, a text in quotes, a mapping or a list.
    r"(?P<colon>: (?=[\w{\[']))?(?P<value>(?<=: )(?:\{[^{}\n]*\}|\[[^\[\]\n]*\]))?"
)


def with_flags(text: str) -> str:
    """An error's text with flags in the place of the keys that a YAML file would have."""

    def flag(found: re.Match[str]) -> str:
        if found["first"]:
            return FIRST_FLAGS[found["first"]]
        if not found["key"]:
            return found[0]
        value = found["value"] or ""
        # As a shell takes it.
        value = f"'{value}'" if value.startswith("{") else value.strip("[]").replace(",", "")
        return FLAGS[found["key"]] + (f" {value}" if found["colon"] else "")

    return _KEYS.sub(flag, text)
