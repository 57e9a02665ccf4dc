"""Configs: read a YAML into a checked config, or report all its problems; sections with their rules, the reader, the
JSON schema, and hints for LLM Foundry's keys.

Imports neither torch nor Composer, so that errors are reported quickly.
"""
