"""Where weights come from: pretrained folders, checkpoints, and adapters with the frozen base beneath them.

Writing weights belongs to train/export.
"""
