"""The network. Read `joint_dit.py` first."""
