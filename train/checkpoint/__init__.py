"""The save folder, the lock of the run that writes to it, and its checkpoints: which are complete, what they contain,
and how their tensors are read.

train/weights decides what a run starts from.
"""
