"""Write the files of a Hugging Face tokenizer in a form that transformers 4.53 to 5 read identically.

transformers 5 saves a class (`TokenizersBackend`) and a list (`extra_special_tokens`) that transformers 4 cannot load.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

TRANSFORMERS_VERSION = "4.53.0"
"""The oldest version of transformers that can read these files. The files state that they were saved with this version.
With a newer version in the files, transformers 4.57 would print an unnecessary warning about the regex of the GPT-4
tokenizer."""
_CLASS = "PreTrainedTokenizerFast"
"""The class that transformers 4 uses for a tokenizer with only a tokenizer.json. transformers 5 accepts it too."""
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


def write_tokenizer(
    folder: Path,
    tokenizer: "tokenizers.Tokenizer",
    *,
    bos_eos_unk: str,
    pad: str,
    additional: Sequence[str],
    chat_template: str,
    max_seq_len: int,
) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja."""
    special = dict(zip(_NAMES, (bos_eos_unk, bos_eos_unk, bos_eos_unk, pad), strict=True))
    named: dict[str, Any] = {"additional_special_tokens": list(additional), **special}
    added = {
        str(token_id): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    config = {
        **named,
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        # DBRX accepts no token_type_ids. Without token_type_ids in the tokenizer's output,
        # model.generate(**tokenizer(text)) works.
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_seq_len,
        "tokenizer_class": _CLASS,
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", named)
    (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def save_for_transformers_4(tokenizer: Any, folder: Path) -> None:
    """Call tokenizer.save_pretrained, and convert entries that only transformers 5 can read to the format of
    transformers 4."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = _CLASS
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    _write_json(file, config)


def write_generation_config(folder: Path, *, bos: int, stop: Sequence[int], pad: int) -> None:
    contents = {
        "bos_token_id": bos,
        "eos_token_id": list(stop),
        "pad_token_id": pad,
        "transformers_version": TRANSFORMERS_VERSION,
    }
    _write_json(folder / "generation_config.json", contents)


def _write_json(file: Path, contents: dict[str, Any]) -> None:
    file.write_text(json.dumps(contents, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
