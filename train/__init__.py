"""Python side of lvpipe: the reference of the model and of LVPruning, and what generates test data. Never needed to run lvpipe."""
