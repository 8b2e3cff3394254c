"""Commands that need a card."""
