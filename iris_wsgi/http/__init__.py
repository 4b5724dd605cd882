"""HTTP/1.1 parsers, without I/O."""
