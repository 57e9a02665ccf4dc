"""What scripts/doctor.py asks of every node before a run: software, hardware, folders, and the links between ranks.

Each check reports what it has found and how to fix it, and raises nothing. What a run itself checks belongs to the
packages that own it; the checks here call them.
"""
