"""The example of docs/curation.md: its raw text with planted defects, its configs, and the tables of the page."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data.curation.config import STEPS, read_config
from scripts.dev.curation.banners import without_banners
from scripts.dev.curation.changes import edited, jaccard, with_banner
from scripts.dev.curation.found import CLEAN, Curated, compare
from scripts.dev.curation.plant import plant, write
from scripts.dev.curation.texts import Overlap, collect, words_of
from tests.helpers.load_script import load_script

ROOT = Path(__file__).parents[2]
YAMLS = sorted((ROOT / "yamls/curation").glob("*.yaml"))
TABLES = load_script("dev/curation_tables")


@pytest.fixture(scope="module")
def texts():
    return collect(16)


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curation")
    write(plant(texts, seed=17), folder)
    return folder


@pytest.fixture(scope="module")
def planted(folder):
    return json.loads((folder / "planted.json").read_text())


def files(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.json*")}


def texts_of(file):
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [each["text"] if "text" in each else each["prompt"] + each["response"] for each in records]


def line_at(folder, place):
    content = (folder / f"raw/{place['source']}.jsonl").read_bytes()
    line = content.splitlines()[place["line"] - 1]
    assert content[place["position"] :].startswith(line)
    return json.loads(line)["text"]


def test_the_data_depends_only_on_the_seed(texts, folder, tmp_path):
    write(plant(texts, seed=17), tmp_path / "again")
    write(plant(collect(16), seed=18), tmp_path / "other")
    assert files(tmp_path / "again") == files(folder)
    assert files(tmp_path / "other") != files(folder)


def test_copies_have_the_recorded_similarity_to_their_originals(folder, planted):
    copies = [each for each in planted["documents"] if "of" in each]
    assert {each["kind"] for each in copies} == {"exact_duplicate", "near_duplicate", "similar"}
    for each in copies:
        similarity = jaccard(line_at(folder, each), line_at(folder, each["of"]))
        low, high = {"exact_duplicate": (1, 1), "near_duplicate": (0.8, 0.97), "similar": (0.2, 0.6)}[each["kind"]]
        assert low <= similarity <= high
        assert similarity == pytest.approx(each["jaccard"], abs=1e-4)


def test_an_edit_changes_only_words():
    text = "One (two), three.\n\n    four five six seven eight nine ten\n"
    changed = edited(text, 0.5, ["new"], random.Random(1))
    assert jaccard(text, changed) <= 0.5
    assert len(words_of(changed)) == 10
    assert "\n\n    " in changed


def test_lines_of_banners_are_removed_without_a_change_of_indentation():
    text = with_banner("def f():\n    return 1\n\n# the end\n")
    assert without_banners({"text": text}, max_share=0.5) == "\ndef f():\n    return 1\n\n# the end\n\n"
    assert without_banners({"text": text}, max_share=0.2) is False


def test_planted_values_and_passages_are_in_their_documents(folder, planted):
    documents = texts_of(folder / "evals/leaked-documents.jsonl")
    for each in planted["documents"]:
        text = line_at(folder, each)
        assert all(value in text for value in each.get("values", ()))
        if each["kind"] == "leaked_document":
            assert Overlap([text]).contains_part(documents[each["evaluation_line"] - 1])


def test_nothing_of_the_unseen_evaluation_sets_is_in_the_raw_text(folder):
    raw = Overlap([text for file in folder.glob("raw/*.jsonl") for text in texts_of(file)])
    for kind in ("documents", "questions"):
        unseen = texts_of(folder / f"evals/unseen-{kind}.jsonl")
        assert unseen
        assert not any(map(raw.contains_part, unseen))


def test_found_defects_are_counted_by_kind_and_step():
    place = {"source": "pages", "position": 0}
    original = {"source": "library", "position": 5}
    planted = {
        "documents": [
            {"kind": "near_duplicate", **place, "of": original},
            {"kind": "email", "source": "library", "position": 9, "values": ["a@b.org"]},
            {"kind": "ipv4", "source": "library", "position": 11, "values": ["93.1.1.1"]},
            {"kind": "numbers", "source": "pages", "position": 7},
        ]
    }
    texts = {("pages", 0): "x", ("library", 9): "<EMAIL>", ("library", 11): "93.1.1.1", ("packages", 0): "clean"}
    removed = {("library", 5): "near_duplicates", ("pages", 7): "gopher_quality"}
    found = {each.kind: each for each in compare(planted, Curated(texts=texts, removed=removed))}
    assert {kind: each.steps for kind, each in found.items()} == {
        "near_duplicate": {"near_duplicates": 1},
        "email": {"changed": 1},
        "ipv4": {},
        "numbers": {"gopher_quality": 1},
        CLEAN: {},
    }
    assert found[CLEAN].planted == 1


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_a_config_is_valid_and_short(path):
    text = path.read_text(encoding="utf-8")
    config, steps = read_config(yaml.safe_load(text))
    assert len(steps) == len(config.steps) > 5
    assert len(text.splitlines()) < 60


def test_the_tables_of_the_page_are_those_of_the_classes():
    page = TABLES.PAGE.read_text(encoding="utf-8")
    for name in ("config", "steps", *STEPS):
        assert f"<!-- table: {name} " in page
    assert TABLES.filled(page, TABLES.TABLES) == page, "python scripts/dev/curation_tables.py"


@pytest.mark.proof
@pytest.mark.subprocess
def test_the_example_is_curated_and_trained(folder, tmp_path):
    short = ["--steps", "2", "--seeds", "1", "--out", str(tmp_path / "runs"), "--json", str(tmp_path / "effect.json")]
    command = [sys.executable, "scripts/dev/curation_effect.py", "--data", str(folder), *short]
    subprocess.run(command, cwd=ROOT, check=True)
    report = json.loads((tmp_path / "effect.json").read_text())
    found = {each["kind"]: each for each in report["found"]}
    exact = ("exact_duplicate", "near_duplicate", "leaked_document", "leaked_questions", "email", "aws_key", "numbers")
    assert {kind: found[kind]["found"] for kind in exact} == {kind: found[kind]["planted"] for kind in exact}
    assert "near_duplicates" not in found["similar"]["steps"]
    assert found[CLEAN]["found"] < 0.3 * found[CLEAN]["planted"]
    assert {name: len(runs) for name, runs in report["losses"].items()} == {"raw": 1, "curated": 1}
