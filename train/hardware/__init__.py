"""What this machine has: its device, its memory, and the kernels that are used on it.

What a run needs of it belongs to train/planning.
"""
