"""Trains LVPruning's decision modules for any Hugging Face LLaVA folder: `python3 -m train.lvpruning.train --help`."""
