"""What changed in the config since a checkpoint was written, and what becomes of it where a run goes on from there.

Knows configs and a checkpoint's position in the data; opens neither data nor weights.
"""
