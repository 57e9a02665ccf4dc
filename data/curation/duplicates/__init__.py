"""The steps of a curation that remove duplicates: documents with the same text, and documents whose sets of word
n-grams are similar.

The similarity of documents is defined in shingles.py, and the algorithm in near.py.
"""
