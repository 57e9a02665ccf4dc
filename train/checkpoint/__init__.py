"""The save folder, the run that owns it, and the checkpoints in it: which are complete, what they hold, what space they
take, and how their tensors are read.

What a run starts from is decided in train/weights.
"""
