"""Checks Triton kernels without a GPU, for gpu_gate.py: records their launches, compiles them, and reports spills,
excessive shared memory, and addresses that overflow 32 bits.

Training does not need this package.
"""
