"""From a source to an MDS folder of rows, once: chunks, worker processes, packing, the manifest.

Reading prepared rows belongs to data/loading.
"""
