"""Saving a checkpoint while training continues: the copy that is written, the thread that writes it, what is kept.

Does not depend on Composer's callbacks; reading a checkpoint belongs in train/checkpoint.
"""
