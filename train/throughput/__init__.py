"""How fast a run is and where its time goes: throughput, memory, time left, and profiles of single steps.

What a run should need by calculation belongs to train/planning, what ends it to train/supervision.
"""
