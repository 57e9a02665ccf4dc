"""Save folders and their checkpoints: which run owns a folder, which checkpoints are complete, what they contain, and
how to read their tensors.

Choosing the checkpoint that a run starts from belongs in train/weights.
"""
