"""Text <-> token ids: tiktoken vocabularies and Hugging Face tokenizers behind one small protocol."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from data.base.errors import ConfigError, DataError, RowError, TemplateError
from data.config.tokenizer import TokenizerConfig
from data.hub.repository_files import CHECKED, check_json_files, refuse_links
from data.tokenization import blocks
from data.tokenization.files import save_for_transformers_4, write_generation_config, write_tokenizer
from data.tokenization.tiktoken_bpe import read_vocabulary, to_fast

if TYPE_CHECKING:
    import jinja2
    import tiktoken
    import tokenizers

# The pattern of cl100k_base in the spelling that tiktoken's and the tokenizers library's regex engines read alike.
CL100K_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

END_OF_TEXT, PAD, IM_START, IM_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
OURS = (END_OF_TEXT, PAD, IM_START, IM_END)

DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant. Answer truthfully, and say so when you do not know."
"""What a conversation without a system turn begins with under `use_default_system_prompt`."""

# The newline stands before a turn, not after one, so that a conversation's text begins with that of its first turns.
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ ('' if loop.first else '\\n') + '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)
DEFAULT_SYSTEM_TURN = (
    "{% if messages[0]['role'] != 'system' %}"
    f"{{{{ '<|im_start|>system\\n{DEFAULT_SYSTEM_PROMPT}<|im_end|>\\n' }}}}"
    "{% endif %}"
)

MOST_BYTES = 2 << 20
"""Of a text that the tokenizers library gets: it takes up to 270 bytes for a byte, and no text can be cut surely for
any vocabulary."""


class Tokenizer(Protocol):
    """What the rest of the code knows of a tokenizer. Instances can be pickled for loader workers."""

    name: str
    vocab_size: int
    """The largest id, special ones included, plus one."""
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    stop_token_ids: list[int]
    """Ids at which generation ends: eos, and the chat template's end of a turn."""
    chat_template: str | None
    chat_template_drops: frozenset[str]
    """What of a conversation the template may leave out: see TokenizerConfig."""
    special_tokens: Mapping[str, int]
    """Those that are written out in rendered conversations, and their ids."""
    fingerprint: str
    """Hash of everything that decides ids and the template's text."""

    def encode(self, text: str) -> np.ndarray:
        """int32. Adds nothing; special tokens written in the text stay text.

        Raises RowError for a text that would take too much memory.
        """
        ...

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        """The conversation as the chat template writes it; with the generation prompt, up to where an answer begins.

        Raises ConfigError when there is no template, TemplateError when it asks for the date and none is configured,
        DataError with what the template says against the conversation.
        """
        ...

    def encode_rendered(self, text: str) -> np.ndarray:
        """int32. Of what render wrote: special tokens in it are special. Raises what encode does."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Bytes that are no character become U+FFFD; ids that stand for nothing, as some of a model's may, nothing."""
        ...

    def save_pretrained(self, folder: Path, max_seq_len: int) -> None:
        """Writes the files of a Hugging Face tokenizer and generation_config.json."""
        ...


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Raises ConfigError when there is no such vocabulary, encoding, model, folder or name, or it cannot be read."""
    if config.name == "tiktoken":
        return _build_tiktoken(config)
    tokenizer = _load_hf(config.name)
    return HFTokenizer(
        config.name, tokenizer, chat_template_drops=config.chat_template_drops, chat_date=config.chat_date
    )


class TiktokenTokenizer:
    """A tiktoken encoding with DBRX's special tokens and ChatML template.

    Those that the encoding lacks come right after its last id: cl100k_base gets <|pad|> 100277, <|im_start|> 100278
    and <|im_end|> 100279 beside its own <|endoftext|> 100257, which are DBRX's.
    """

    def __init__(
        self,
        name: str,
        ranks: dict[bytes, int],
        pattern: str,
        special_tokens: dict[str, int],
        *,
        use_default_system_prompt: bool = False,
        chat_template_drops: Sequence[str] = (),
    ) -> None:
        import tiktoken

        special = dict(special_tokens)
        next_id = max(*ranks.values(), *special.values(), -1) + 1
        for token in OURS:
            if token not in special:
                special[token] = next_id
                next_id += 1
        self.name = name
        self.vocab_size = next_id
        self.bos_token_id = self.eos_token_id = special[END_OF_TEXT]
        self.pad_token_id = special[PAD]
        self.stop_token_ids = [special[END_OF_TEXT], special[IM_END]]
        self._template = (DEFAULT_SYSTEM_TURN if use_default_system_prompt else "") + CHATML_TEMPLATE
        self.chat_template: str | None = self._template
        self.chat_template_drops = frozenset(chat_template_drops)
        self.special_tokens: Mapping[str, int] = special
        by_rank = sorted((rank, token.hex()) for token, rank in ranks.items())
        settings = _chat_settings(self.chat_template_drops)
        self.fingerprint = _hash(["tiktoken", by_rank, pattern, sorted(special.items()), self._template, *settings])
        # Encodings with different special tokens should have different names, tiktoken says.
        self._encoding = tiktoken.Encoding(
            f"dropless-{self.fingerprint}", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )

    def encode(self, text: str) -> np.ndarray:
        if len(text) > blocks.BLOCK:
            return blocks.encode_blocks(self._encoding, text, special=False)
        return _int32(self._encoding.encode_to_numpy(text, disallowed_special=()))

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        try:
            return _compile(self._template).render(messages=messages, add_generation_prompt=add_generation_prompt)
        except TypeError as error:  # the template joins texts, and a content is none
            raise DataError(str(error)) from error

    def encode_rendered(self, text: str) -> np.ndarray:
        if len(text) > blocks.BLOCK:
            return blocks.encode_blocks(self._encoding, text, special=True)
        return _int32(self._encoding.encode_to_numpy(text, allowed_special="all"))

    @cached_property
    def _fast(self) -> "tokenizers.Tokenizer":
        """The same vocabulary in the tokenizers library, as it is exported."""
        encoding = self._encoding
        return to_fast(encoding._mergeable_ranks, encoding._pat_str, encoding._special_tokens)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._encoding.decode([token for token in np.asarray(ids).tolist() if token in self._known])

    @cached_property
    def _known(self) -> frozenset[int]:
        encoding = self._encoding
        return frozenset((*encoding._mergeable_ranks.values(), *encoding._special_tokens.values()))

    def save_pretrained(self, folder: Path, max_seq_len: int) -> None:
        write_tokenizer(
            folder,
            self._fast,
            bos_eos_unk=END_OF_TEXT,
            pad=PAD,
            additional=[IM_START, IM_END],
            chat_template=self._template,
            max_seq_len=max_seq_len,
        )
        write_generation_config(folder, bos=self.bos_token_id, stop=self.stop_token_ids, pad=self.pad_token_id)


class HFTokenizer:
    """Any tokenizer of the transformers library that needs no code from elsewhere."""

    def __init__(
        self, name: str, tokenizer: Any, *, chat_template_drops: Sequence[str] = (), chat_date: str | None = None
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                f"tokenizer.name is {name!r}, but that tokenizer has no eos_token, so a model could not learn to stop: "
                "set one in its tokenizer_config.json"
            )
        self.name = name
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1
        self.eos_token_id: int = tokenizer.eos_token_id
        self.bos_token_id: int = _first_id(tokenizer.bos_token_id, self.eos_token_id)
        self.pad_token_id: int = _first_id(tokenizer.pad_token_id, self.eos_token_id)
        self.chat_template: str | None = tokenizer.chat_template
        self.stop_token_ids = [self.eos_token_id]
        end_of_turn = _end_of_turn(tokenizer)
        if end_of_turn not in (None, self.eos_token_id):
            self.stop_token_ids.append(end_of_turn)
        self.special_tokens: Mapping[str, int] = _hf_special_tokens(tokenizer)
        self.chat_template_drops = frozenset(chat_template_drops)
        self._date = None if chat_date is None else datetime.fromisoformat(chat_date)
        settings = _chat_settings(self.chat_template_drops, chat_date)
        self.fingerprint = _hash(["hf", _hf_contents(tokenizer), self.stop_token_ids, self.chat_template, *settings])
        self._tokenizer = tokenizer

    def encode(self, text: str) -> np.ndarray:
        return self._encode(text, split_special_tokens=True)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        if self.chat_template is None:
            raise ConfigError(
                f"tokenizer.name is {self.name!r}, but that tokenizer has no chat template, which messages need: name "
                "one that has, or set chat_template in its tokenizer_config.json"
            )
        try:
            return _render(self._tokenizer, messages, tools, add_generation_prompt, self._strftime)
        except TemplateError:
            raise
        except Exception as error:  # whatever the template runs into, or raises itself
            raise DataError(str(error) or type(error).__name__) from error

    def _strftime(self, format: str) -> str:
        if self._date is None:
            raise TemplateError(
                f"the chat template of tokenizer {self.name} writes today's date ({format}), so that the rows would "
                "depend on the day on which they are prepared: configure the date, as in tokenizer.chat_date: "
                "'2026-11-29'"
            )
        return self._date.strftime(format)

    def encode_rendered(self, text: str) -> np.ndarray:
        return self._encode(text, split_special_tokens=False)

    def _encode(self, text: str, *, split_special_tokens: bool) -> np.ndarray:
        if len(text) > MOST_BYTES // 4:  # what a character takes at most
            _check_size(text)
        ids = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=split_special_tokens, verbose=False
        )
        return np.array(ids, dtype=np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode(np.asarray(ids).tolist(), clean_up_tokenization_spaces=False)

    def save_pretrained(self, folder: Path, max_seq_len: int) -> None:
        before = self._tokenizer.model_max_length
        self._tokenizer.model_max_length = max_seq_len
        save_for_transformers_4(self._tokenizer, folder)
        self._tokenizer.model_max_length = before
        write_generation_config(folder, bos=self.bos_token_id, stop=self.stop_token_ids, pad=self.pad_token_id)


def _build_tiktoken(config: TokenizerConfig) -> TiktokenTokenizer:
    kwargs = config.kwargs
    if kwargs.vocab_file is not None:
        ranks, pattern, special = read_vocabulary(Path(kwargs.vocab_file), OURS), CL100K_PATTERN, {}
        name = kwargs.vocab_file
    else:
        key = "encoding_name" if kwargs.encoding_name is not None else "model_name"
        name = str(getattr(kwargs, key))
        encoding = _load_encoding(key, name)
        ranks, pattern, special = encoding._mergeable_ranks, encoding._pat_str, encoding._special_tokens
    with_system = kwargs.use_default_system_prompt
    return TiktokenTokenizer(
        f"tiktoken:{name}",
        ranks,
        pattern,
        special,
        use_default_system_prompt=with_system,
        chat_template_drops=config.chat_template_drops,
    )


def _load_encoding(key: str, name: str) -> "tiktoken.Encoding":
    import tiktoken

    try:
        encoding_name = tiktoken.encoding_name_for_model(name) if key == "model_name" else name
    except KeyError:
        raise ConfigError(
            f"tokenizer.kwargs.model_name is {name!r}, which tiktoken does not know: DBRX's is gpt-4, "
            "or give an encoding_name"
        ) from None
    known = tiktoken.list_encoding_names()
    if encoding_name not in known:
        raise ConfigError(f"tokenizer.kwargs.{key} is {name!r}, but tiktoken knows only {', '.join(sorted(known))}")
    try:
        return tiktoken.get_encoding(encoding_name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"tokenizer.kwargs.{key} is {name!r}, but its vocabulary cannot be downloaded ({type(error).__name__}): "
            "set TIKTOKEN_CACHE_DIR to a folder that holds it, or give a local tokenizer.kwargs.vocab_file"
        ) from error


def _load_hf(name: str) -> Any:
    from transformers import AutoTokenizer

    from data.hub.reach import why_offline

    path = Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not path.is_dir():
        raise ConfigError(f"tokenizer.name is {name!r}, but there is no such folder")
    offline = None if path.is_dir() else why_offline()
    try:
        if path.is_dir():
            # What it reads can be saved beside a checkpoint.
            refuse_links(path)
            check_json_files(path)
            return AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
        commit = _check_on_hub(name, offline)
        return AutoTokenizer.from_pretrained(
            name, revision=commit, trust_remote_code=False, local_files_only=offline is not None
        )
    except ConfigError as error:
        raise ConfigError(f"tokenizer.name is {name!r}, but {error}") from None
    except (
        Exception
    ) as error:  # transformers raises OSError, ValueError, KeyError, ImportError and bare Exceptions here
        if offline is not None:
            raise ConfigError(
                f"tokenizer.name is {name!r}, which is neither a folder here nor in the hub's cache, and the hub "
                f"cannot be asked ({offline}): give a Hugging Face folder"
            ) from error
        raise ConfigError(f"tokenizer.name is {name!r}, but {_why_not_loaded(path, error)}") from error


def _check_on_hub(name: str, offline: str | None) -> str:
    """Checks a repository's JSON files, which are fetched; returns their commit, of which alone the rest may be."""
    from huggingface_hub import snapshot_download

    from data.hub.client import quiet

    with quiet():
        folder = snapshot_download(name, allow_patterns=list(CHECKED), local_files_only=offline is not None)
    check_json_files(Path(folder), name)
    return Path(folder).name


def _why_not_loaded(folder: Path, error: Exception) -> str:
    """What is wrong with the folder or repository that transformers raised this for, and what to do."""
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    if folder.is_dir() and not any(name.startswith(("tokenizer.", "vocab.", "spiece.")) for name in names):
        return "there is no tokenizer.json in it: save one there with transformers' tokenizer.save_pretrained"
    # The rest of this message lists every architecture that transformers knows.
    if reason.startswith("Unrecognized model") and folder.is_dir():
        return (
            "neither a config.json with a model_type nor a tokenizer_class in a tokenizer_config.json says of which "
            "class its tokenizer is: copy the one that belongs to it, or write a tokenizer_config.json with "
            '{"tokenizer_class": "PreTrainedTokenizerFast"} and its special tokens'
        )
    if len(reason) > _REASON_LENGTH:
        reason = f"{reason[: _REASON_LENGTH - 3]}..."
    return (
        f"no tokenizer could be loaded from there ({type(error).__name__}: {reason}): give a Hugging Face folder or "
        "name that needs no code of its own, or `tiktoken`"
    )


_REASON_LENGTH = 300
"""Characters of a message of transformers that are shown at most."""


@lru_cache
def _compile(template: str) -> "jinja2.Template":
    """As transformers compiles it, so that an exported template writes the same."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)


def _render(
    tokenizer: Any,
    messages: list[dict[str, Any]],
    tools: list[Any] | None,
    add_generation_prompt: bool,
    strftime: Callable[[str], str],
) -> str:
    """tokenizer.apply_chat_template, but the same text with every transformers: 5 leaves out keys that are null, which
    some templates ask for.

    strftime replaces transformers' strftime_now, which is of the day on which it runs. It is set where transformers
    keeps the compiled template, because a function that is handed over as a variable is not called by 5.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

    template = tokenizer.get_chat_template(tools=tools)
    _compile_jinja_template(template).environment.globals["strftime_now"] = strftime
    (text,), _ = render_jinja_template(
        [messages],
        tools=tools,
        chat_template=template,
        add_generation_prompt=add_generation_prompt,
        **tokenizer.special_tokens_map,
    )
    return text


def _check_size(text: str) -> None:
    n_bytes = len(text.encode())
    if n_bytes > MOST_BYTES:
        raise RowError(
            "too large for its tokenizer",
            f"has a text of {n_bytes:,} bytes, but {MOST_BYTES:,} are the most for a Hugging Face tokenizer, which "
            "takes up to 270 times that in memory: split the row, remove it, or use tiktoken, which takes any size",
        )


def _int32(ids: np.ndarray) -> np.ndarray:
    """tiktoken's uint32 without a copy."""
    return ids.view(np.int32)


def _first_id(*ids: int | None) -> int:
    return next(token_id for token_id in ids if token_id is not None)


def _end_of_turn(tokenizer: Any) -> int | None:
    """The special token that the template writes after an assistant's words, if it writes one."""
    if tokenizer.chat_template is None:
        return None
    words = "the assistant's words"
    messages = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": words}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # a template may ask for more than two plain messages; then eos alone stops
        return None
    rest = text.rpartition(words)[2].lstrip()
    found = [token for token in tokenizer.all_special_tokens if rest.startswith(token)]
    return tokenizer.convert_tokens_to_ids(max(found, key=len)) if found else None


def _hf_special_tokens(tokenizer: Any) -> dict[str, int]:
    """Those that split_special_tokens would split, in the order of their ids."""
    added = {token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return dict(sorted((named | added).items(), key=lambda item: item[1]))


def _hf_contents(tokenizer: Any) -> object:
    if tokenizer.is_fast:
        return tokenizer.backend_tokenizer.to_str()
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        files = sorted(Path(file) for file in tokenizer.save_vocabulary(folder) if file is not None)
        contents = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    # Of its settings (such as do_lower_case) those that are not paths or names of files.
    settings = {key: repr(value) for key, value in tokenizer.init_kwargs.items() if not re.search("file|path", key)}
    return [type(tokenizer).__name__, contents, settings, sorted(tokenizer.get_added_vocab().items())]


def _chat_settings(drops: frozenset[str], date: str | None = None) -> list[Any]:
    """What is configured of the chat template, for the fingerprint; nothing where nothing is."""
    return [sorted(drops), date] if drops or date is not None else []


def _hash(contents: object) -> str:
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:32]
