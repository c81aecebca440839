"""Starts runs elsewhere: `python -m experiments.launch --help`. One module a backend renders what is submitted."""
