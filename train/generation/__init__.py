"""Text from a model: drawn, asked for, and compared with what it should be."""
