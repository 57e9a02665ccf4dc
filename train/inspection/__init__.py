"""What scripts/checkpoint.py shows about checkpoints and save folders, and what it deletes.

Reading and retaining checkpoints belong in train/checkpoint. Runs do not use this package.
"""
