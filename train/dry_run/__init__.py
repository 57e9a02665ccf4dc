"""What `train.py CONFIG --dry-run` does: opens all that the run would read, and shows its plan and first batch.

It trains nothing and leaves the save folder as it is. What is opened is opened by train/run.
"""
