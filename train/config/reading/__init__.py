"""From YAML and `key=value` to plain values: the file, references to other keys, the values of presets and weights.

What the values mean, and whether they are valid, belongs to train/config.
"""
