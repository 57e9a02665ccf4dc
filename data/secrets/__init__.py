"""Secrets in texts: the names and formats by which they are recognized, and their removal from messages.

Nothing here depends on other packages of this repository.
"""
