"""Collecting episodes from a simulator into stores. The simulator arrives as an argument, never as an import."""
