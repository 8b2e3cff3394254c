"""Command line: one module for each command, and the application that holds them."""
