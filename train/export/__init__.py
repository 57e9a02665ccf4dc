"""Export a checkpoint as a Hugging Face folder or a PEFT adapter, and verify the exported folder.

Reading Hugging Face folders belongs in train/weights.
"""
