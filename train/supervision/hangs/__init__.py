"""Deadlines for each section of a run, a heartbeat per rank, and how all ranks end when one rank hangs, fails or is
lost.

train/distributed/failures.py shares a rank's failure with the other ranks; loaders watch their own workers
(data/loading).
"""
