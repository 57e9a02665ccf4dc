"""Save folders in object stores: files are written to a local staging folder and uploaded in the background.

The layout is that of a local save folder. The manifest is sent last and commits the checkpoint.
"""
