"""Decontamination: find the questions of evaluation sets in documents.

Evaluation sets are read in evals.py and harness.py, stored in an index (index.py), and looked up in each document.
"""
