"""Convert a YAML file and `key=value` overrides to plain values: read the file, resolve references to other keys, and
add the values of presets and of pretrained weights.

Checks of the values belong in train/config.
"""
