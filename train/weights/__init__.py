"""Where initial weights come from: pretrained folders, checkpoints, and the frozen base beneath adapters.

Writing weights belongs to train/export.
"""
