"""The published tables and figures of four papers, and what runs them: part of the repository, not of the installed package."""
