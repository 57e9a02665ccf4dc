"""Saving checkpoints while training continues: the copy of the tensors, the thread that writes it, and the deletion of
older checkpoints.

Does not depend on Composer's callbacks. Reading a checkpoint belongs in train/checkpoint.
"""
