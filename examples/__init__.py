"""Configurations a user copies, with archives made from data that comes with installed packages."""
