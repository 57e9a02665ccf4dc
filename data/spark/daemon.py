"""The program that forks the Python processes of a local Spark session. Large libraries are imported once before the
forks, so that the processes share their memory."""

import gc

import streaming  # noqa: F401
from pyspark.daemon import manager

if __name__ == "__main__":
    gc.freeze()  # garbage collection would write to, and therefore copy, all shared memory
    manager()
