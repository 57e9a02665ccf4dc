"""The Hugging Face hub: checks whether the hub can be reached, and which files of a repository are safe to read.

Datasets of the hub are a source (data/sources). Pretrained models are fetched in train/hf.
"""
