"""Faults for bench_faults.py: processes that run the commands of this project, small runs, and what is done to them."""
