"""Results as pages of HTML that need nothing from outside."""
