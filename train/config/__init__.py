"""Reads a YAML file into a validated config, or reports all of its errors. Contains the config sections and their
rules, the JSON schema, and hints for LLM Foundry's keys.

Imports neither torch nor Composer, so that errors are reported quickly.
"""
