"""What import and export share: config.json, repositories, safetensors files, rows of tensors.

Reading weights belongs to train/weights, writing them to train/export.
"""
