"""Planning of a run: the memory per rank, whether this machine has enough memory, and the row plan.

Opens the run's data, but builds no model.
"""
