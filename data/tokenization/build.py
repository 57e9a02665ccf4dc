"""Build the tokenizer of a config."""

from data.config.tokenizer import TokenizerConfig
from data.tokenization.hf_loading import load_hf
from data.tokenization.hf_tokenizer import HFTokenizer
from data.tokenization.tiktoken_tokenizer import build_tiktoken
from data.tokenization.tokenizer import Tokenizer


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Raises ConfigError if the vocabulary, encoding, model, folder or name does not exist or cannot be read."""
    if config.name == "tiktoken":
        return build_tiktoken(config)
    tokenizer = load_hf(config.name)
    return HFTokenizer(
        config.name, tokenizer, chat_template_drops=config.chat_template_drops, chat_date=config.chat_date
    )
