"""What a run would do on given nodes and GPUs: predicted times, a search for better settings, and the report.

Nothing here is measured: assumptions are named where they are made.
"""
