"""The commands of scripts/checkpoint.py: list, verify, compare and delete the checkpoints of a save folder.

Code that runs use to read, keep and delete checkpoints belongs in train/checkpoint. Runs do not use this package.
"""
