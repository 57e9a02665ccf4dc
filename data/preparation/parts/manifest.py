"""A folder's manifest.json: everything that determines its rows, its fingerprint, and statistics of the input."""

import json
from typing import Any

import xxhash

from data.base.versions import STREAMING, installed_versions
from data.config.dataset import DatasetConfig
from data.examples.preprocessing import preprocessing_source
from data.mds.writer import MadeFrom
from data.preparation.parts.progress import Totals
from data.sources.source import Source
from data.tokenization.tokenizer import Tokenizer

FORMAT_VERSION = 4
"""Part of the fingerprint. Increase the version when a code change leads to different rows for the same input."""
EARLIER_VERSIONS = (3,)
"""Folders of these versions are still used, so that a resumed run reads the rows with which it started. In version 3,
the source was packed as a whole, not slice by slice, and the documents of rows were not recorded."""


def fingerprint_inputs(config: DatasetConfig, source: Source, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Everything that determines the rows, as a mapping from names to values. The location of the input is not
    included. Input files that are not in the record of input files (see data/sources/input_files.py) are read."""
    preprocessing = preprocessing_source(config.preprocessing_fn)
    of_tokens = (
        {}
        if tokenizer is None
        else {
            "tokenizer": tokenizer.fingerprint,
            "max_seq_len": config.max_seq_len,
            "packing": config.packing,
            "target_prompts": config.target_prompts,
            "target_responses": config.target_responses,
            "excess_length": config.excess_length,
        }
    )
    return {
        "format": FORMAT_VERSION,
        "input": source.fingerprint,
        "preprocessing_fn": xxhash.xxh3_128_hexdigest(preprocessing.encode()) if preprocessing else None,
        **of_tokens,
        "on_bad_example": config.on_bad_example,
    }


def fingerprint_of(made_from: MadeFrom) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(made_from, sort_keys=True).encode())


def in_version(made_from: MadeFrom, version: int) -> MadeFrom:
    """The values that a version of Dropless with this format records for the same input and settings."""
    return {**made_from, "format": version}


def describe(config: DatasetConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The manifest's entries about rows of tokens."""
    of_tokenizer = {key: getattr(tokenizer, key) for key in ("name", "fingerprint", "chat_template")}
    return {"max_seq_len": config.max_seq_len, "packing": config.packing, "tokenizer": of_tokenizer}


def manifest_of(
    config: DatasetConfig, source: Source, made_from: MadeFrom, details: dict[str, Any], totals: Totals
) -> dict[str, Any]:
    """The manifest of the finished folder. `details` are added to the manifest unchanged."""
    reading, tally = totals.reading, totals.tally
    counts = {name: value for name, value in vars(tally).items() if not isinstance(value, dict)}
    return {
        "format": FORMAT_VERSION,
        "fingerprint": fingerprint_of(made_from),
        "made_from": made_from,
        "inputs": source.inputs,
        "form": reading.form,
        "preprocessing_fn": config.preprocessing_fn,
        **details,
        "rows_in": reading.n_valid + reading.n_dropped + reading.bad_rows,
        "examples_in": reading.n_valid,
        **counts,
        "dropped": totals.dropped(),
        "bad_rows": dict(reading.kinds),
        "ignored_columns": dict(reading.ignored),
        "document_lengths": dict(sorted(tally.document_lengths.items(), key=lambda item: int(item[0]))),
        "versions": installed_versions(("dropless", *STREAMING, "numpy")),
    }
