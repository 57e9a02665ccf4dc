"""The checks of scripts/doctor.py, which run on every node before training: software, hardware, folders, and links
between ranks.

Each check reports its result and how to fix a problem, and never raises. Checks that a training run also performs are
in the packages that they check, and are called from here.
"""
