"""The published tables and figures of four papers, and what runs them."""
