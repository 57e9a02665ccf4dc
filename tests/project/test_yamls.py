from pathlib import Path

import pytest

from tests.helpers.load_script import load_script
from train.config.load import read_config, to_yaml
from train.planning.checks import read_checked

ROOT = Path(__file__).parents[2]
YAMLS = sorted(path for path in (ROOT / "yamls").rglob("*.yaml") if path.parent.name != "curation")
TABLES = load_script("dev/preset_table")


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_yaml_loads_and_is_short(path, tmp_path):
    config = read_config(str(path))
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    assert read_config(str(resolved)) == config
    assert len(path.read_text().splitlines()) < 60


def test_every_yaml_has_a_number_of_ranks():
    names = [str(path.relative_to(ROOT / "yamls")) for path in YAMLS]
    # docs/examples/ describes the others.
    assert sorted(TABLES.SHIPPED) == [name for name in names if not name.startswith("examples/")]


@pytest.mark.parametrize(("name", "ranks"), TABLES.SHIPPED.items())
def test_a_yaml_passes_all_checks_for_the_ranks_it_is_written_for(name, ranks):
    read_checked(str(ROOT / "yamls" / name), [], ranks)


@pytest.mark.parametrize("page", TABLES.PAGES)
def test_tables_of_a_page_are_those_of_the_planner(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- table: presets " in text
    assert TABLES.filled(text) == text, "python scripts/dev/preset_table.py --write"


def test_tables_are_written_between_their_markers():
    page = "before\n<!-- table: presets x -->\nold\n<!-- end of table -->\nafter\n"
    written = TABLES.filled(page)
    assert written.startswith("before\n<!-- table: presets x -->\n\n| preset |")
    assert written.endswith(" |\n\n<!-- end of table -->\nafter\n")
    assert "old" not in written
    assert TABLES.filled(written) == written


def test_the_smallest_number_of_gpus_fits_and_half_of_it_does_not():
    config = read_config(str(ROOT / "yamls/finetune/dbrx.yaml"))
    found = TABLES.smallest(config)
    assert found.ranks == 64
    assert found.memory < 80 * 2**30 < TABLES.prediction(config, 32).memory
