"""Conversion between bytes and arrays, without I/O."""
