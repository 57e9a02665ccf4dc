"""The hardware of this machine: its device, its memory, and the kernels that can run on it.

train/planning computes the resources that a run needs.
"""
