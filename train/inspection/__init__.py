"""The implementation of scripts/checkpoint.py, which shows, verifies and deletes checkpoints.

Reading and retaining checkpoints belong in train/checkpoint. Runs do not use this package.
"""
