"""Save checkpoints while training continues: copy the tensors, write the copy in a thread, and delete older
checkpoints.

Does not depend on Composer's callbacks. Reading a checkpoint belongs in train/checkpoint.
"""
