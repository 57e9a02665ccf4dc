"""Text from a model: prompts, decoding, and evaluation of the answers.

How text is sampled is configured in train/config/sampling.py.
"""
