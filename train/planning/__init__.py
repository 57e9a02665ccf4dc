"""The resources of a run, determined before it starts: memory per rank, whether this machine has enough, the row plan.

Opens the run's data, but builds no model.
"""
