"""Foreign datasets in place: one face, one file a format. Nothing here writes."""
