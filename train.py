"""`composer train.py CONFIG [key=value ...]`: see train/main.py."""

import gc
import os
import sys

# Torch asks when it makes its first tensor: large ones then lie in huge pages (Linux, CPU).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from train.main import main

# What importing has made stays: collections during a run need not look through it again and again.
gc.freeze()

if __name__ == "__main__":
    sys.exit(main())
