"""What a YAML says about data: dataclasses that check their own values, and the syntax of splits.

No file is opened here. What a config leads to belongs to the packages that read it.
"""
