"""Text generation: prompts, decoding, and evaluation of the answers.

Sampling is configured in train/config/sampling.py.
"""
