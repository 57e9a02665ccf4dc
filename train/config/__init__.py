"""From a YAML to a checked config, or to all of its problems: sections and their rules, the reader, the JSON schema,
hints about LLM Foundry's keys.

Imports neither torch nor Composer, so that errors come at once.
"""
