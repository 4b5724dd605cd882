"""Scores whole files and tables, in constant memory, to the end whatever happens, each row once."""
