"""Shared by import and export: config.json, repositories, safetensors files, rows of tensors.

Reading weights belongs in train/weights, writing them in train/export.
"""
