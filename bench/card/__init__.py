"""One command for a card: everything that must be measured on it, in order, row by row, within the minutes at hand."""
