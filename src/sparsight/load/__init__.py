"""Models in: vision models and vision-language models by name, folder or file; zero-shot heads; known shapes with random weights."""
