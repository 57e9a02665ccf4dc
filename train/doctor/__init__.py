"""The checks of scripts/doctor.py, which run on every node before training: software, hardware, folders, and links
between ranks.

Each check reports what it found and how to fix it, and never raises. Checks that a training run also makes belong to
the packages that they check, and are called from here.
"""
