"""Code shared by the import and export of Hugging Face folders: config.json, repositories, safetensors files, and rows
of tensors.

Reading weights belongs in train/weights, and writing weights in train/export.
"""
