"""Reports of one or several runs, each as one HTML file without external links. The reports are written by
scripts/report.py, or at the end of a run.

This package only reads the files of a log folder. The loggers and callbacks that write these files are in other
packages. This package does not import torch.
"""
