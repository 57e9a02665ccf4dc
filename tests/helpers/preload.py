"""Imports for the fork server of ranks.py that every rank would otherwise make itself."""

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
# The first config that is read builds the validators.
read_config(str(Path(__file__).parents[2] / "yamls" / "finetune" / "dbrx_tiny.yaml"), [])
# Keeps garbage collections on a rank from scanning these objects.
gc.collect()
gc.freeze()
