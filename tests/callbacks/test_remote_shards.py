from pathlib import Path

import pytest

from data.preparation.prepare import prepare
from data.tokenization.build import build_tokenizer
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from tests.helpers.watched_run import run
from train.config.load import load_config


@pytest.mark.ranks
def test_two_ranks_of_a_node_share_its_copy_of_remote_shards(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    config = load_config(path).config
    rows = prepare(config.train_loader.dataset, build_tokenizer(config.tokenizer))
    remote = f"train_loader.dataset={{remote: {rows}, local: {tmp_path / 'local'}, max_seq_len: 128}}"
    outs = run_ranks(run, 2, path, [remote, "max_duration=2ba", "eval_loader=null"])
    assert len(outs) == 2
    assert list((tmp_path / "local").glob("*.mds"))
