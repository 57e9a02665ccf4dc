"""The save folder, the run that owns it, and its checkpoints: which are complete, what they contain, and how their
tensors are read.

train/weights decides what a run starts from.
"""
