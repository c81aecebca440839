"""Pretrained text and image encoders: one text module and one vision transformer, with switches."""
