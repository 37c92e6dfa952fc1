"""A vision model as a service: HTTP in, batches for each recipe, one engine."""
