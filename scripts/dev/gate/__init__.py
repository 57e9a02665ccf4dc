"""Checks of Triton kernels without a GPU, run by gpu_gate.py: launches, resources of the compiled kernels, and
addresses.

Training does not need this package.
"""
