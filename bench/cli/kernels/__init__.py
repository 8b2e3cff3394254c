"""Commands about kernel matrices in files."""
