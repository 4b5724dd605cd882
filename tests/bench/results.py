"""Results of a run: figures by server and round, their medians, and the problems."""

from statistics import median


class Results:
    """Figures by server and round. `failures` has the servers that were given up, `warnings` the problems of single windows."""

    def __init__(self, rounds: int, command: str) -> None:
        self.rounds, self.command = rounds, command
        self.by_server: dict[str, list[dict[str, float]]] = {}
        self.failures: dict[str, str] = {}
        self.warnings: dict[str, str] = {}

    def add(self, server: str, figures: dict[str, float]) -> None:
        self.by_server.setdefault(server, []).append(figures)

    def value(self, server: str, figure: str) -> float | None:
        """Returns the median over the rounds, or None if the figure was not measured."""
        taken = [found[figure] for found in self.by_server.get(server, []) if figure in found]
        return median(taken) if taken else None

    def ratio(self, over: tuple[str, str], under: tuple[str, str]) -> float | None:
        """Returns the ratio of two figures, or None if one was not measured."""
        above, below = self.value(*over), self.value(*under)
        return None if above is None or not below else above / below
