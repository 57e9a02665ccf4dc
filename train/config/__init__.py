"""From a YAML to a checked config, or to all of its problems: dataclasses, the reader, and hints about LLM Foundry's
keys.

Imports neither torch nor Composer, so that errors come at once.
"""
