"""Read a YAML into a checked config, or report all of its problems: sections and their rules, the reader, the JSON
schema, hints for LLM Foundry's keys.

Imports neither torch nor Composer, so that errors are reported quickly.
"""
