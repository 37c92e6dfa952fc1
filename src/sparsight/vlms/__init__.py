"""One family of vision-language models = one file; what is before and inside the language model is shared."""
