"""Parts of a prepared folder: the plan of slices, the files that a task writes for one slice, and merging all parts.

Tokenization and packing belong to data/preparation/packing, and the choice of machines to data/preparation/engines.
"""
