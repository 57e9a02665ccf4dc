"""Hugging Face folders of DBRX: read as weights to start from, written, and proved."""
