"""The parts that all steps of a curation share: documents, verdicts, the base classes of steps, and the report of a
step.

The steps themselves are in the packages above.
"""
