"""Exports a checkpoint as a Hugging Face folder or a PEFT adapter, and verifies the result.

Reading Hugging Face folders belongs in train/weights.
"""
