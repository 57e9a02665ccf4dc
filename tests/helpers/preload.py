"""For the fork server of ranks.py: what every rank would otherwise import, or find out, for itself."""

import gc
from pathlib import Path

import omegaconf
import pytest
import streaming
import tiktoken
from composer.utils.collect_env import get_cpu_model

from tests.helpers.reports import reports_at_end
from train.config.load import read_config

__all__ = ["omegaconf", "pytest", "streaming", "tiktoken"]

# Composer notes it in each checkpoint, and starts a Python process to ask for it: more than a second for each rank.
get_cpu_model()
reports_at_end(False)
# How configs are read is worked out with the first one.
read_config(str(Path(__file__).parents[2] / "yamls" / "finetune" / "dbrx_tiny.yaml"), [])
# Collections on a rank need not look through what is here.
gc.collect()
gc.freeze()
