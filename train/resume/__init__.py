"""Finds the differences between the config and the config of a checkpoint, and decides how a resumed run handles each
difference.

Depends on configs and on a checkpoint's position in the data; opens neither data nor weights.
"""
