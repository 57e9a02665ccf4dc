"""`composer train.py CONFIG [key=value ...]`: see train/main.py."""

import os
import sys

# Torch reads this variable when it creates its first tensor, and then uses huge pages for large ones (Linux, CPU).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from train.main import main

if __name__ == "__main__":
    sys.exit(main())
