"""What changed in the config since a checkpoint was written, and how a resumed run handles each change.

Depends only on configs and on the checkpoint's position in the data. Opens neither the data nor the weights.
"""
