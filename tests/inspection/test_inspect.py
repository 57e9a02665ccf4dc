import random
import runpy
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from rich.console import Console

from data.inspection.duplicates import duplicate_lines, duplicates, overlap, overlap_lines
from data.inspection.lengths import BINS, draw_histogram, histogram, histogram_lines, summary_lines
from data.inspection.minhash import signature
from data.inspection.row_text import show_row
from data.inspection.survey import Survey, survey_rows
from data.inspection.verification import verification_lines
from data.loading.opening import open_rows
from data.loading.verify import verify
from data.mds.row import Row
from tests.helpers.toy_tokenizer import ToyTokenizer, dataset_config, write_jsonl

TOY = ToyTokenizer()
SCRIPT = Path(__file__).parents[2] / "scripts" / "inspect_data.py"
QUICKSTART = Path(__file__).parents[2] / "quickstart"


def surveyed(folder: Path, rows: list[dict], name: str = "train", max_seq_len: int = 512) -> Survey:
    write_jsonl(folder / name / "train.jsonl", rows)
    return survey_rows(name, open_rows(dataset_config(folder / name, max_seq_len=max_seq_len), TOY))


def pair(text: str) -> dict:
    return {"prompt": "p", "response": text}


def words(rng: random.Random, n: int = 60) -> list[str]:
    return ["".join(rng.choices("abcdefgh", k=5)) for _ in range(n)]


def row_of(*documents: tuple[bytes, bytes]) -> Row:
    tokens = np.array([byte for prompt, response in documents for byte in prompt + response], dtype=np.int32)
    mask = [bit for prompt, response in documents for bit in [0] * len(prompt) + [1] * len(response)]
    lengths = np.array([len(prompt + response) for prompt, response in documents], dtype=np.int32)
    return Row(tokens, np.array(mask, dtype=np.uint8), lengths)


def shown(row: Row, *, marks: bool, color: bool) -> str:
    console = Console(force_terminal=color, color_system="standard" if color else None, width=200, highlight=False)
    with console.capture() as capture:
        console.print(show_row(7, row, TOY, marks=marks), soft_wrap=True)
    return capture.get()


def test_trained_tokens_have_another_color_and_documents_have_borders():
    text = shown(row_of((b"ask ", b"answer"), (b"why", b"so")), marks=False, color=True)
    assert "\x1b[32manswer\x1b[0m" in text
    assert "\x1b[90mask \x1b[0m" in text
    assert "row 7, document 1 of 2: 10 tokens, 6 trained" in text
    assert "row 7, document 2 of 2: 5 tokens, 2 trained" in text


def test_trained_tokens_are_marked_if_there_are_no_colors():
    assert "ask ⟦answer⟧\n" in shown(row_of((b"ask ", b"answer")), marks=True, color=False)


def test_control_characters_in_data_do_not_reach_the_terminal():
    text = shown(row_of((b"a\x1b[31m[bold]b\r", b"c\x07\nd")), marks=True, color=False)
    assert "a␛[31m[bold]b␍⟦c␇\nd⟧" in text


def test_a_survey_counts_every_row_and_document(tmp_path):
    rows = [pair("a" * n) for n in range(1, 41)]
    survey = surveyed(tmp_path, rows, max_seq_len=64)
    assert (survey.n_documents, survey.tokens, survey.trained_tokens) == (40, sum(range(3, 43)), sum(range(2, 42)))
    assert survey.n_rows < 20
    assert survey.lengths.tolist() == [0] * 3 + [1] * 40 + [0] * 22
    assert "mean 22.5, median 22, longest 42" in summary_lines(survey)[1]


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_a_text_split_into_rows_is_one_document_and_is_found_again(tmp_path: Path, packing: str):
    texts = ["a" * 40, "b" * 7, "c" * 15, "a" * 40]
    write_jsonl(tmp_path / "train.jsonl", [{"text": text} for text in texts])
    rows = open_rows(dataset_config(tmp_path, max_seq_len=16, packing=packing), TOY)
    survey = survey_rows("train", rows)
    assert np.flatnonzero(survey.lengths).tolist() == [8, 16, 41]
    assert summary_lines(survey)[0].startswith(f"train: {rows.n_rows} rows, 4 documents, 106 tokens")
    assert duplicates(survey).exact.tolist() == [[3, 0]]
    assert survey.trained_tokens == rows.trained_tokens


def test_the_histogram_counts_every_document_once():
    rng = np.random.default_rng(0)
    for longest in (1, 7, 20, 21, 400):
        sizes = rng.integers(1, longest + 1, size=300)
        bins = histogram(np.bincount(sizes, minlength=500))
        assert len(bins) <= BINS
        assert sum(count for *_, count in bins) == 300
        assert bins == [(low, high, int(((sizes >= low) & (sizes <= high)).sum())) for low, high, _ in bins]
        assert (bins[0][0], bins[-1][1]) == (sizes.min(), sizes.max())
    assert histogram(np.zeros(9, dtype=np.int64)) == []


def test_histogram_lines_are_as_long_as_the_counts():
    lines = histogram_lines(np.array([0, 4, 8]), columns=8)
    assert lines == ["  1 to 1  ████      4 (33.3%)", "  2 to 2  ████████  8 (66.7%)"]


def test_copies_and_near_copies_are_distinguished(tmp_path):
    rng = random.Random(0)
    originals = [words(rng) for _ in range(30)]
    near = [[*text[:30], "zzzzz", *text[31:]] for text in originals[:5]]
    other = [text[:15] + words(rng, 45) for text in originals[5:10]]
    texts = [" ".join(text) for text in [*originals, *near, originals[10], originals[10], *other]]
    survey = surveyed(tmp_path, [pair(text) for text in texts])
    found = duplicates(survey)
    at = _numbers(survey, texts, tmp_path)
    assert _named(found.exact, at) == {(35, 30 - 20), (36, 30 - 20)}
    assert {tuple(sorted(each)) for each in _named(found.near, at)} == {(n, 30 + n) for n in range(5)}
    lines = duplicate_lines(survey)
    assert lines[0] == "train: 42 documents, 2 (4.8%) copies of an earlier document, 5 (11.9%) near-duplicates"
    assert sum(" equals train row " in line for line in lines) == 2
    assert sum(" is close to train row " in line for line in lines) == 5


def _numbers(survey: Survey, texts: list[str], folder: Path) -> dict[int, int]:
    """Map each document of the survey to its text; equal texts are used in their order."""
    rows = open_rows(dataset_config(folder / survey.name, max_seq_len=512), TOY)
    left = [f"p{text}" for text in texts]
    numbers = {}
    for document, (row, place) in enumerate(survey.places.tolist()):
        ids, _ = list(rows.read(row).documents())[place]
        text = TOY.decode(ids)
        numbers[document] = left.index(text)
        left[numbers[document]] = ""
    return numbers


def _named(pairs: np.ndarray, numbers: dict[int, int]) -> set[tuple[int, int]]:
    return {(numbers[one], numbers[other]) for one, other in pairs.tolist()}


def test_eval_documents_that_are_trained_on_are_found(tmp_path):
    rng = random.Random(1)
    train, others = [words(rng) for _ in range(40)], [words(rng) for _ in range(10)]
    near = [[*train[4][:59], "zzzzz"]]
    known = surveyed(tmp_path, [pair(" ".join(text)) for text in train])
    asked = surveyed(tmp_path, [pair(" ".join(text)) for text in [*others, train[7], train[9], *near]], "eval")
    found = overlap(known, asked)
    assert (len(found.exact), len(found.near)) == (2, 1)
    lines = overlap_lines(known, asked)
    assert lines[0] == "eval: 13 documents, 2 (15.4%) also in train, 1 (7.7%) near-duplicates"
    assert overlap(asked, asked).exact[:, 0].tolist() == list(range(13))


def test_minhash_estimates_the_share_of_common_ngrams():
    rng = np.random.default_rng(2)
    for shared in (0.0, 0.5, 0.9, 1.0):
        estimates = []
        for _ in range(30):
            one = rng.integers(0, 50_000, size=1000)
            two = np.concatenate([one[: int(1000 * shared)], rng.integers(0, 50_000, size=1000 - int(1000 * shared))])
            grams = [{tuple(ids[at : at + 5]) for at in range(996)} for ids in (one.tolist(), two.tolist())]
            jaccard = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
            estimates.append((signature(one) == signature(two)).mean() - jaccard)
        assert abs(np.mean(estimates)) < 0.03


@pytest.mark.parametrize("n", [1, 4, 5, 6])
def test_documents_shorter_than_an_ngram_have_signatures(n):
    one, two = np.arange(n), np.arange(n) + 1
    assert (signature(one) == signature(one.astype(np.int64))).all()
    assert (signature(one) != signature(two)).mean() > 0.5


def test_the_limit_of_compared_documents_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("data.inspection.survey.MOST_COMPARED", 10)
    survey = surveyed(tmp_path, [pair("same words")] * 15)
    assert (survey.n_documents, len(survey.hashes)) == (15, 10)
    lines = duplicate_lines(survey)
    assert lines[0].startswith("train: 10 documents, 9 (90.0%) copies")
    assert lines[1] == "  (only the first 10 of 15 documents in train were compared)"
    assert lines[-1] == "  ... and 4 more"


def test_the_picture_is_a_png(tmp_path):
    survey = surveyed(tmp_path, [pair("a" * n) for n in range(1, 41)])
    draw_histogram([survey, survey], tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_verification_names_the_samples_of_a_broken_shard(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [pair("a" * n) for n in range(1, 41)])
    rows = open_rows(dataset_config(tmp_path, packing="none", max_seq_len=64), TOY)
    assert verification_lines(verify(rows)) == [f"{rows.mds.name}: 1 shards, 40 samples, 0 shards corrupt"]
    shard = next(rows.folder.glob("shard.*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    lines = verification_lines(verify(rows.folder))
    assert lines[0].endswith("1 shards, 40 samples, 1 shards corrupt")
    assert lines[1].startswith("  shard.00000.00.mds, samples 0 to 39: ")


@pytest.fixture
def run(tmp_path, capsys):
    """Run the script on the quickstart's tokenizer and 30 examples; return exit code, output and errors."""
    examples = [pair("a" * n) for n in range(1, 31)]
    write_jsonl(tmp_path / "train.jsonl", examples)
    write_jsonl(tmp_path / "eval.jsonl", [*examples[20:], pair("new")])
    dataset = f"{{hf_name: json, max_seq_len: 64, cache_dir: {tmp_path / 'cache'}, hf_kwargs: {{data_files: FILE}}}}"
    loader = f"{{name: finetuning, num_workers: 0, dataset: {dataset}}}"
    (tmp_path / "run.yaml").write_text(
        "max_seq_len: 64\nmodel: {preset: tiny, vocab_size: 320}\n"
        f"tokenizer: {{name: tiktoken, kwargs: {{vocab_file: {QUICKSTART / 'vocab.tiktoken'}}}}}\n"
        f"train_loader: {loader.replace('FILE', str(tmp_path / 'train.jsonl'))}\n"
        f"eval_loader: {loader.replace('FILE', str(tmp_path / 'eval.jsonl'))}\n"
        "optimizer: {name: adamw, lr: 1e-3}\nscheduler: {name: constant_with_warmup}\n"
        "max_duration: 10ba\nglobal_train_batch_size: 8\n"
    )
    main = runpy.run_path(str(SCRIPT))["main"]

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([str(tmp_path / "run.yaml"), *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_script_shows_rows_lengths_duplicates_and_overlap(run, tmp_path):
    code, out, _ = run(
        "--rows", "1", "--first", "1", "--png", str(tmp_path / "lengths.png"), "train_loader.num_workers=1"
    )
    assert code == 0
    assert "── row 1, document 1 of " in out
    assert "── row 0, " not in out
    assert "<|endoftext|>⟧" in out
    assert "train: 30 documents, 0 (0.0%) copies of an earlier document" in out
    assert "eval: 11 documents, 10 (90.9%) also in train" in out
    assert (tmp_path / "lengths.png").exists()


def test_the_script_reads_at_most_max_rows(run):
    code, out, _ = run("--rows", "0", "--max-rows", "3")
    assert code == 0
    assert "train: 3 of 9 rows, " in out


def test_the_script_writes_a_page(run, tmp_path):
    page = tmp_path / "data.html"
    code, out, _ = run("--html", str(page), "--rows", "1", "run_name=mine")
    assert (code, out.splitlines()[-1]) == (0, f"wrote {page}")
    assert "<title>Data of mine</title>" in page.read_text("utf-8")
    assert page.read_text("utf-8").count("<article") == 2


def test_a_first_row_after_the_last_row_is_reported(run, tmp_path):
    page = tmp_path / "data.html"
    assert run("--html", str(page), "--first", "999")[0] == 0
    assert "the source has 9 rows, so there is no row 999" in page.read_text("utf-8")
    assert "train has 9 rows: there is no row 999 (--first)" in run("--first", "999")[1]


def test_the_page_is_written_even_if_the_rows_cannot_be_planned(run, tmp_path):
    page = tmp_path / "data.html"
    assert run("--html", str(page), "max_duration=10000ba")[0] == 0
    assert "The rows of this run cannot be planned: train_loader.dataset" in page.read_text("utf-8")


def test_the_script_verifies(run, tmp_path):
    assert run("--verify")[0] == 0
    shard = next((tmp_path / "cache").glob("*/shard.*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    code, out, _ = run("--verify")
    assert code == 1
    assert f"{shard.name}, samples 0 to " in out


def test_an_interrupt_shows_no_traceback(run, monkeypatch):
    monkeypatch.setattr("data.loading.opening.open_rows", Mock(side_effect=KeyboardInterrupt))
    assert run() == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train_loader.dataset.hf_kwargs.data_files=none.jsonl"], "error: train_loader.dataset.hf_kwargs.data_files"),
        (["--rows", "-1"], "error: --rows is -1, but it must be at least 0"),
        (["--max-rows", "0"], "error: --max-rows is 0, but it must be at least 1"),
        (["--html", "."], "error: --html is '.', which is a folder: specify a file"),
        (["--html", "CONFIG"], "error: --html is 'CONFIG', which is also an input and would be overwritten"),
        (
            ["--png", "no/such/folder.png"],
            "error: --png is 'no/such/folder.png', but its folder does not exist or is not writable",
        ),
    ],
)
def test_the_script_reports_errors(run, tmp_path, arguments, message):
    config = str(tmp_path / "run.yaml")
    code, _, errors = run(*(each.replace("CONFIG", config) for each in arguments))
    assert code == 2
    assert errors.startswith(message.replace("CONFIG", config))
