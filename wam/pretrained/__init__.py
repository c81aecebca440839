"""Name maps and converters for released weights."""
