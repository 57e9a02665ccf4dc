"""Imports for the fork server of ranks.py, so that the ranks do not have to import these modules."""

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

# Composer records this in each checkpoint and starts a Python process to find it: more than a second per rank.
get_cpu_model()
reports_at_end(False)
# Reading a first config builds the validators.
read_config(str(Path(__file__).parents[2] / "yamls" / "finetune" / "dbrx_tiny.yaml"), [])
# Garbage collection on a rank then does not scan these objects.
gc.collect()
gc.freeze()
