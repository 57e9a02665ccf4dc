"""What a run needs before it starts: memory of a rank, the plan of its rows, tables of both.

Nothing here builds a model.
"""
