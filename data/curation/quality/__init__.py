"""Quality rules: the published heuristics of Gopher, C4 and FineWeb, and language identification.

Each rule computes scores of a document, and compares them with thresholds. Parameters have the names and the defaults
of datatrove, and tests compare scores and decisions with datatrove's.
"""
