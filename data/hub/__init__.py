"""The Hugging Face hub: checks whether the hub can be reached, and which files of a repository are safe to read.

Datasets on the hub are read in data/sources. Pretrained models are fetched in train/hf.
"""
