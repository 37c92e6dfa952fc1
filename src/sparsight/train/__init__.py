"""Fine-tuning under pruning."""
