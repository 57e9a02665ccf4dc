"""Code shared by imports and exports: config.json, repositories, safetensors files, rows of tensors.

Reading weights belongs in train/weights, writing them in train/export.
"""
