"""Reads YAML files and `key=value` overrides into plain values, and resolves references to other keys. Also reads the
values of presets and weights.

Checks of the values belong in train/config.
"""
