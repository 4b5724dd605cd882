"""Has each model that lies beside the main one answer its golden rows, in the image and while it is built."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from iris_wsgi.errors import BadModel
from iris_wsgi.folder import Golden, read_all, read_file
from iris_wsgi.golden import self_test
from iris_wsgi.model import Model, load_model, open_session


class Halves(NamedTuple):
    """Both halves of a model as one."""

    prep: Any
    pred: Model
    labels: tuple[str, ...]
    width: int

    def predict(self, rows: Any) -> Any:
        (scaled,) = self.prep.run(None, {self.prep.get_inputs()[0].name: rows})
        return self.pred.predict(scaled)


def main(root: Path) -> int:
    """A model of one's own has none of them, or some."""
    try:
        for folder, model, golden in models(root):
            print(f"{folder}: {self_test(model, golden.cases, golden.tolerance)}")
    except BadModel as error:
        print(f"iris_wsgi: {error}", file=sys.stderr)
        return 1
    return 0


def models(root: Path) -> Iterator[tuple[Path, Any, Golden]]:
    """The folder of each, the model, and its golden.json; the rows of the first half are answered by both."""
    prep = root / "prep"
    for path in sorted(root.glob("*/**/golden.json")):
        if path.parent != prep:
            yield path.parent, *load_model(path.parent)
    if prep.exists():
        yield prep, *load_halves(prep, root / "pred")


def load_halves(first: Path, second: Path) -> tuple[Halves, Golden]:
    golden, files = read_all(lambda name: read_file(first / name), str(first))
    prep, (pred, _) = open_session(files[golden.model], str(first / golden.model)), load_model(second)
    pairs = [session.get_modelmeta().custom_metadata_map.get("pair") for session in (prep, pred.session)]
    if pairs[0] != pairs[1]:
        raise BadModel(f"{first} and {second} are no halves of one model")
    return Halves(prep, pred, pred.labels, prep.get_inputs()[0].shape[1]), golden


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
