"""Sources of initial weights: pretrained folders, checkpoints, and adapters with their frozen base.

Writing weights belongs in train/export.
"""
