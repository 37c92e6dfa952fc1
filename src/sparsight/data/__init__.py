"""Images in: folders, data sets of the Hub, labels, presets, corruptions, questions."""
