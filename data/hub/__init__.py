"""The Hugging Face hub: whether it can be reached, and what in a repository is safe to read.

Datasets of the hub are a source (data/sources); pretrained models are fetched in train/hf.
"""
