"""A small real run over a curriculum."""

import json
import random
from pathlib import Path

import yaml

from tests.helpers.toy_run import WORDS, write_toy_run

STAGES = [
    {"name": "broad", "duration": "5ba", "proportions": {"web": 0.7, "code": 0.3}},
    {"name": "shift", "duration": "4ba", "proportions": {"from": {"web": 0.7, "code": 0.3}, "to": {"math": 1.0}}},
    {"name": "anneal", "duration": None, "proportions": {"math": 0.8, "code": 0.2}, "lr_scale": 0.5},
]


def write_curriculum(folder: Path) -> str:
    """Return the config of the toy run with three streams and three stages."""
    path = Path(write_toy_run(folder))
    config = yaml.safe_load(path.read_text())
    draw = random.Random(1)
    streams = {}
    for number, (name, count) in enumerate({"web": 300, "code": 90, "math": 150}.items()):
        lines = [
            json.dumps(
                {"prompt": f"{number} {' '.join(draw.choices(WORDS, k=draw.randint(1, 6)))}\n", "response": name}
            )
            for _ in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        streams[name] = {
            "hf_name": "json",
            "hf_kwargs": {"data_files": str(folder / f"{name}.jsonl")},
            "max_repeats": 9.0,
        }
    dataset = config["train_loader"]["dataset"]
    config["train_loader"]["dataset"] = {
        "streams": streams,
        "max_seq_len": dataset["max_seq_len"],
        "cache_dir": dataset["cache_dir"],
    }
    config["train_loader"]["stages"] = STAGES
    config |= {"max_duration": "14ba", "save_interval": "2ba", "autoresume": True, "eval_interval": "14ba"}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return str(path)
