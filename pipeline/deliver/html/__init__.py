"""The report as a page: one file without any other, for a browser."""
