"""The one exception type of the library."""


class PruneError(ValueError):
    """A request that cannot be carried out: names the thing, what was got, what is possible and the fix."""
