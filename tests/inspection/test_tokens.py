"""The text of each token of a row, with marks for documents, trained tokens and special tokens."""

from pathlib import Path

import numpy as np
import pytest

from data.config.tokenizer import TokenizerConfig, TokenizerKwargs
from data.inspection.oddity import special_ids
from data.inspection.page.tokens import SHOWN_TOKENS, show_row, texts_of_tokens
from data.loading.opening import open_rows
from data.loading.rows import Rows
from data.tokenization.build import build_tokenizer
from tests.helpers.toy_tokenizer import ToyTokenizer, dataset_config, write_jsonl

ROOT = Path(__file__).parents[2]
TOY = ToyTokenizer()
SPECIAL = special_ids(TOY)


def opened(folder: Path, examples: list[dict[str, str]], max_seq_len: int) -> Rows:
    write_jsonl(folder / "train.jsonl", examples)
    return open_rows(dataset_config(folder, max_seq_len=max_seq_len), TOY)


@pytest.mark.parametrize("text", ["plain", "漢字 🎉 é", "ends inside 🎉"])
def test_the_texts_of_all_tokens_are_the_text(text: str) -> None:
    ids = [*TOY.encode(text).tolist(), 256, *TOY.encode(text).tolist()]
    found = list(texts_of_tokens(ids, TOY, SPECIAL))
    assert "".join(each for *_, each in found) == f"{text}<eos>{text}"
    assert [start for start, *_ in found[1:]] == [stop for _, stop, _ in found[:-1]]
    assert max(stop - start for start, stop, _ in found) == max(len(character.encode()) for character in text)


def test_invalid_bytes_do_not_hide_the_tokens_after_them() -> None:
    ids = [0xF0, 0x9F, 256, 0xFF, 0xFE, 0xFD, 0xFC, *b"abc"]
    found = list(texts_of_tokens(ids, TOY, SPECIAL))
    assert found[0] == (0, 2, "\ufffd")
    assert "".join(each for *_, each in found).endswith("abc")
    assert sum(stop - start for start, stop, _ in found) == len(ids)


def test_a_space_that_a_tokenizer_removes_at_the_start_of_a_text_is_shown() -> None:
    class Words(ToyTokenizer):
        def decode(self, ids):
            return "".join(f" {chr(token_id)}" for token_id in ids)[1:]

    assert [text for *_, text in texts_of_tokens([97, 98, 99], Words(), SPECIAL)] == ["a", " b", " c"]


def test_the_tokens_of_a_vocabulary_form_the_text() -> None:
    tokenizer = build_tokenizer(
        TokenizerConfig(name="tiktoken", kwargs=TokenizerKwargs(vocab_file="quickstart/vocab.tiktoken"))
    )
    text = "What is 55 plus 67?\n漢字 🎉"
    ids = tokenizer.encode(text)
    assert len(ids) < len(text.encode())
    assert "".join(each for *_, each in texts_of_tokens(ids.tolist(), tokenizer, special_ids(tokenizer))) == text


def test_a_row_shows_its_documents_and_padding(tmp_path: Path) -> None:
    rows = opened(tmp_path, [{"prompt": "ask ", "response": "it"}, {"prompt": "b", "response": "\x07<i>"}], 32)
    row = show_row(0, rows, TOY, SPECIAL)
    assert row.title == "row 0: 2 documents, 13 tokens, 8 trained, 19 positions of padding"
    assert sorted(each.title for each in row.documents) == [
        "document 1 of 2: 7 tokens, 3 trained",
        "document 2 of 2: 6 tokens, 5 trained",
    ]
    pieces = [each for document in row.documents for each in document.pieces]
    assert "".join(each.text for each in pieces) == "ask it<eos>b␇<i><eos>"
    assert "".join(each.text for each in pieces if each.is_trained) == "it<eos>␇<i><eos>"
    assert [each.ids for each in pieces if each.is_special] == ["256", "256"]
    assert row.hidden == ""


def test_the_first_token_of_a_document_is_not_trained_and_long_rows_are_cut(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "x" * 5000}])
    rows = open_rows(dataset_config(tmp_path, max_seq_len=2000), TOY)
    row = show_row(1, rows, TOY, SPECIAL)
    assert row.documents[0].title.endswith(", continued from the previous row, continues in the next row")
    trained = np.array([each.is_trained for each in row.documents[0].pieces])
    assert trained.tolist() == [False] + [True] * (SHOWN_TOKENS - 1)
    assert row.hidden == "500 more tokens of this row are not shown"
