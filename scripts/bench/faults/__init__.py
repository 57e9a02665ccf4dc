"""The faults that bench_faults.py injects, the small runs into which they are injected, and the processes that run the
project's commands."""
