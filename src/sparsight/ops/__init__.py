"""Pure tensor mathematics: torch only, no model, no configuration, no state."""
