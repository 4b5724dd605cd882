"""What a run found: figures by server and round, their medians, and what is missing and why."""

from statistics import median


class Outcome:
    """Collects figures per server and round. A server with a `reason` was given up; a `note` tells of single windows."""

    def __init__(self, rounds: int, command: str) -> None:
        self.rounds, self.command = rounds, command
        self.results: dict[str, list[dict[str, float]]] = {}
        self.reasons: dict[str, str] = {}
        self.notes: dict[str, str] = {}

    def add(self, server: str, figures: dict[str, float]) -> None:
        self.results.setdefault(server, []).append(figures)

    def value(self, server: str, figure: str) -> float | None:
        """The median over the rounds, or None where it was not measured."""
        taken = [found[figure] for found in self.results.get(server, []) if figure in found]
        return median(taken) if taken else None

    def ratio(self, over: tuple[str, str], under: tuple[str, str]) -> float | None:
        """One server's figure over another's, or None where either was not measured."""
        above, below = self.value(*over), self.value(*under)
        return None if above is None or not below else above / below
