"""For the fork server of ranks.py: what every rank would otherwise import, or find out, for itself."""

import omegaconf
import pytest
import streaming
import tiktoken
from composer.utils.collect_env import get_cpu_model

__all__ = ["omegaconf", "pytest", "streaming", "tiktoken"]

# Composer notes it in each checkpoint, and starts a Python process to ask for it: more than a second for each rank.
get_cpu_model()
