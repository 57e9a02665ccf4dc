"""`train.py CONFIG --dry-run`: opens everything that the run would read, and shows the run's plan and first batch.

Nothing is trained, and the save folder is not changed. The inputs are opened by train/run.
"""
