"""Faults for bench_faults.py: forked processes for the project's commands, small runs, and the faults themselves."""
