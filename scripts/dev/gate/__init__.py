"""Checks of Triton kernels without a GPU, run by gpu_gate.py: their launches, compiled resources, and addresses.

Training does not need this package.
"""
