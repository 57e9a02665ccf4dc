"""`composer train.py CONFIG [key=value ...]`: see train/main.py."""

import os
import sys

# Torch asks when it makes its first tensor: large ones then lie in huge pages (Linux, CPU).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from train.main import main

if __name__ == "__main__":
    sys.exit(main())
