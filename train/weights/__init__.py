"""Sources of the initial weights: pretrained folders, checkpoints, and adapters with their frozen base model.

Writing weights belongs in train/export.
"""
