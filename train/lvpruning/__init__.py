"""Trains LVPruning's decision modules for any Hugging Face LLaVA folder: `python -m train.lvpruning.train --help`."""
