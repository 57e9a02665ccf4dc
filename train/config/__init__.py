"""Configs: the sections with their rules, the reader that reports all problems of a YAML file, the JSON schema, and
hints for LLM Foundry's keys.

Imports neither torch nor Composer, so that errors are reported quickly.
"""
