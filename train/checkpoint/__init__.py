"""The save folder, the run that owns it, and the checkpoints in it: which are complete, what they contain, how much
space they take, and how their tensors are read.

train/weights decides what a run starts from.
"""
