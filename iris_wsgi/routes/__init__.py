"""What clients see, one module per family of routes: each has `routes(...) -> list[Route]`."""
