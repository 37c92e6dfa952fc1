"""Results as pages of HTML that need nothing from outside: a function takes a result and returns the page, a template lays it out."""
