"""The data sections of a config, and the base class of all sections: rules, types of values, pydantic.

No files are opened here. The packages that read the data check whether it exists.
"""
