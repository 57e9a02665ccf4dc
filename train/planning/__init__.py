"""The resources that a run needs, computed before it starts: memory per rank, a check of the memory of this machine,
and the row plan.

Opens the run's data, but builds no model.
"""
