"""`composer train.py CONFIG [key=value ...]`: see train/main.py."""

import os
import sys

# With this variable, torch uses huge pages for large tensors (Linux, CPU). torch reads the variable when it creates the
# first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from train.main import main

if __name__ == "__main__":
    sys.exit(main())
