"""The documents that a run and its checkpoints were trained on, and the run's lineage as an OpenLineage event.

The rows of batches and the documents of rows belong to data/lineage.
"""
