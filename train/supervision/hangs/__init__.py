"""Deadlines for the parts of a run, a heartbeat of each rank, and how every rank ends when one hangs, fails or is lost.

What a rank tells the others about its failure is in train/distributed/failures.py; a loader watches its workers itself
(data/loading).
"""
