"""Saves a checkpoint while training continues: the copy in memory, the thread that writes it, and the choice of the
checkpoints to keep.

Does not depend on Composer's callbacks; reading a checkpoint belongs in train/checkpoint.
"""
