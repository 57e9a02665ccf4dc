"""Save folders and their checkpoints: which run owns a folder, which checkpoints are complete, what a checkpoint
contains, and how to read its tensors.

Choosing the checkpoint that a run starts from belongs in train/weights.
"""
