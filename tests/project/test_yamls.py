from pathlib import Path

import pytest

from train.config.load import read_config, to_yaml
from train.config.ranks import check_world_size

ROOT = Path(__file__).parents[2]
YAMLS = sorted((ROOT / "yamls").rglob("*.yaml"))


def test_yamls_exist():
    assert {path.name for path in YAMLS} >= {"dbrx.yaml", "dbrx_tiny.yaml"}


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_yaml_loads_and_is_short(path, tmp_path):
    config = read_config(str(path))
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    assert read_config(str(resolved)) == config
    assert len(path.read_text().splitlines()) < 60


RANKS = {"dbrx.yaml": 64, "dbrx_lora.yaml": 8, "dbrx_tiny.yaml": 2, "dbrx_tiny_lora.yaml": 2}


@pytest.mark.parametrize(("name", "ranks"), RANKS.items())
def test_the_batch_of_a_yaml_can_be_split_over_its_ranks(name, ranks):
    check_world_size(read_config(str(ROOT / "yamls/finetune" / name)), ranks)
