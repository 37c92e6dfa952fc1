"""One model family = one file; families match a model by the names of its classes, so no framework is imported here."""
