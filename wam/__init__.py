"""`wam`: world-action models in JAX. Importing the package imports nothing heavy."""

__version__ = "0.1.0"
