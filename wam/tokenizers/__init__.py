"""Video, text and action signals to tokens and back."""
