"""What keeps a run from being lost without a word: signals and preemption, deadlines, events that are reported.

What the loss and the gradients say belongs to train/stability; what a checkpoint is, to train/checkpoint.
"""
