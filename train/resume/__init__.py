"""What changed in the config since a checkpoint was written, and how a resumed run handles each change.

Depends on configs and on a checkpoint's position in the data; opens neither data nor weights.
"""
