"""Code shared by import and export: config.json, repositories, safetensors files, and rows of tensors.

Reading weights belongs in train/weights, writing them in train/export.
"""
