"""The program that forks the Python processes of a local Spark session. The modules of most steps are imported once
before the forks, so that the processes start quickly and share their memory."""

import gc

from pyspark.daemon import manager

if __name__ == "__main__":
    gc.freeze()  # garbage collection would write to, and therefore copy, all shared memory
    manager()
