"""The DBRX model in plain torch, independent of Composer, run configs and ranks.

Parameter names are those of Hugging Face's DBRX.
"""
