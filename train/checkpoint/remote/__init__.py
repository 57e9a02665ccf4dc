"""Save folders in object stores: what is written to a local staging folder is sent there in the background.

The layout is that of a save folder, and the manifest, which is sent last, commits a checkpoint there too.
"""
