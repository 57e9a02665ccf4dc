"""DBRX in plain torch. Knows nothing of Composer, of configs of runs, or of ranks.

Parameter names are those of Hugging Face's DBRX.
"""
