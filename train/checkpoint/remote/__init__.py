"""Save folders in object stores. Files are written to a local staging folder and sent to the store in the background.

The layout is the same as in a local save folder. A checkpoint's manifest is sent last, and commits the checkpoint.
"""
