"""The parts of a GPU run (scripts/dev/gpu_run.sh), each in its own process with a time limit, and their report.

Training does not need this package. The modules import only torch, transformers and packages of this repository.
"""
