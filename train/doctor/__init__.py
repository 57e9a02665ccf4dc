"""The checks of scripts/doctor.py, made on every node before a run: software, hardware, folders, links between ranks.

Each check reports what it found and how to fix it, and never raises. Checks that a run makes itself belong to the
packages that own them; the checks here call those.
"""
