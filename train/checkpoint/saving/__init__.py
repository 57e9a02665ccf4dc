"""Saving a checkpoint while training continues: the copy that is written, the thread that writes it, what is kept.

Knows nothing of Composer's callbacks; reading a checkpoint belongs to train/checkpoint.
"""
