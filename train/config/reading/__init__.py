"""Read YAML and `key=value` into plain values: the file, references to other keys, values of presets and weights.

Checks of the values belong in train/config.
"""
