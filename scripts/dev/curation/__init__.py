"""The example of docs/curation.md: raw text with known defects, and the effect of curation on a model.

Used by scripts/dev/make_curation_data.py and scripts/dev/curation_effect.py.
"""
