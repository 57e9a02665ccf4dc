"""The DBRX model in plain torch, which does not depend on Composer, run configs or ranks.

Parameter names are those of Hugging Face's DBRX.
"""
