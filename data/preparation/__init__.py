"""From a source to an MDS folder of rows, once: slices, worker processes, packing, and the converters' command lines.

Reading prepared rows belongs to data/loading.
"""
