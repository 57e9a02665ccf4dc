"""Text for benchmarks: the source code of Python's standard library, shuffled and repeated, and a vocabulary that is
learned from it."""

import base64
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def write_text(file: Path, n_bytes: float) -> list[str]:
    """Write the texts of the library repeatedly, as JSONL. Return each text once, in the order of its
    first occurrence in the file."""
    texts = library()
    written = 0
    with file.open("w", encoding="utf-8") as out:
        while written < n_bytes:
            for text in texts:
                written += out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                if written >= n_bytes:
                    break
    return texts


def library() -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts]
    texts = [path.read_bytes().decode("utf-8", errors="ignore") for path in files]
    texts = [text for text in texts if text.strip()]
    random.Random(0).shuffle(texts)
    return texts


def make_vocabulary(file: Path, size: int) -> None:
    """Learn byte-pair merges from the library, so that tokens have a realistic length."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from data.tokenization.tiktoken_bpe import byte_letters

    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(
        library(), trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(byte_of), show_progress=False)
    )
    lines = []
    for token, rank in bpe.get_vocab().items():
        text = base64.b64encode(bytes(byte_of[letter] for letter in token)).decode()
        lines.append(f"{text} {rank}\n")
    file.write_text("".join(lines))


def texts_of(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]
