"""`train.py CONFIG --dry-run`: opens everything that the run would read, and shows the row plan and the first batch.

It trains nothing and does not change the save folder. train/run opens the inputs.
"""
