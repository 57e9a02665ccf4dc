"""Deadlines for each section of a run, heartbeats of the ranks, and the code that ends all ranks if one of them hangs,
fails or is lost.

train/distributed/failures.py shares a rank's failure with the other ranks; loaders watch their own workers
(data/loading).
"""
