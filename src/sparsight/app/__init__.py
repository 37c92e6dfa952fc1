"""The web page `sparsight app`: see what a method keeps of a picture, and what that does to a prediction or an answer."""
