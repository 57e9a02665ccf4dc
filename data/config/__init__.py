"""The config sections for data, and the base of all config sections: rules, types of values, and validation with
pydantic.

No files are opened here. The packages that read the data check whether it exists.
"""
