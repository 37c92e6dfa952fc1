"""Pruned models that travel: a folder with model, recipes, evidence and model card, and the Hugging Face Hub."""
