"""Steps that change, sample or filter documents one by one: normalization, masking of personal data, samples, and the
user's own functions.

Filters by quality, duplicates and decontamination are in the packages next to this one.
"""
