"""Which documents are in each row, which batches draw each row, and how often documents are drawn.

What a run really trained on (skipped batches, rollbacks, checkpoints) belongs to train/lineage.
"""
