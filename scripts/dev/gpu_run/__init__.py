"""The parts of a GPU run (scripts/dev/gpu_run.sh), each in a process of its own with a time limit, and their report.

Nothing here is needed to train a model. Modules import torch, transformers and packages of this repository alone.
"""
