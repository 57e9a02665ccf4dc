"""Faults for bench_faults.py: the processes that run the project's commands, the small runs, and the faults."""
