"""What a YAML says about data, and what all sections of a config are made of: rules, types of values, pydantic.

No file is opened here. What a config leads to belongs to the packages that read it.
"""
