"""The Hugging Face hub: checks that the hub can be reached, and that the files of a repository are safe to read.

Datasets on the hub are read in data/sources. Pretrained models are fetched in train/hf.
"""
