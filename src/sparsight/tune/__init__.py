"""Find the recipe for a model: search spaces read off the registry, shared trials, targets, what was found with its evidence."""
