from pathlib import Path

import pytest

from data.base.errors import ConfigError
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from tests.helpers.watched_run import run
from train.config.load import load_config
from train.weights.start import Start, open_weights


@pytest.mark.ranks
def test_a_base_of_another_shape_is_refused_also_on_resume(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    run_ranks(run, 1, path, ["max_duration=2ba", "save_interval=2ba", "eval_loader=null"])
    base = tmp_path / "toy" / "ep0-ba2"
    lora = ["lora={r: 2, alpha: 4, target_modules: [attn]}", f"load_path={base}", "load_weights_only=true"]
    adapters = Start(path=tmp_path / "adapters" / "ep0-ba2", state=None, resuming=True)
    assert open_weights(load_config(path, lora).config, adapters) is not None
    with pytest.raises(ConfigError, match="ep0-ba2 does not match the model of the run's config"):
        open_weights(load_config(path, [*lora, "model.n_layers=3"]).config, adapters)
