"""From a checkpoint to a Hugging Face folder or a PEFT adapter, and the verification of what was written.

Reading a Hugging Face folder belongs to train/weights.
"""
