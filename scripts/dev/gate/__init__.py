"""The checks of Triton kernels without a GPU, run by gpu_gate.py: what is launched, what it compiles to, its addresses.

Nothing here is needed to train a model.
"""
