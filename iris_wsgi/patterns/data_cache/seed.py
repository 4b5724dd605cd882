"""The items that a new database begins with: the rows that the model was trained on."""

from collections.abc import Callable
from pathlib import Path

from iris_wsgi.model.session import Graph
from iris_wsgi.model.training_data import FILE, read_training


def seed(model: Graph, folder: Path, tell: Callable[[str, str], None]) -> dict[str, bytes]:
    """Rows by ids 0000, 0001, …; none where the file is not there or is not of this model, which `tell` is told."""
    try:
        rows, _ = read_training(model, folder)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        tell("warning", f"a new database of items begins empty: {folder / FILE} is not used: {why}")
        return {}
    return {f"{i:04d}": row.astype("<f4").tobytes() for i, row in enumerate(rows)}
