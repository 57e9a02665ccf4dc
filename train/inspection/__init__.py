"""What scripts/checkpoint.py shows of checkpoints and save folders, and what it deletes.

Reading a checkpoint, and which of them are kept, belong in train/checkpoint; a run needs nothing from here.
"""
