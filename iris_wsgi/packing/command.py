"""The command pack: its flags, and the run that prints the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iris_wsgi.console import ArgumentParser, print_error, print_result

PACK = """Writes the folder of a model that the server can serve, after comparing the results of the model on every row of a CSV.
MODEL is an ONNX file, or a fitted estimator of scikit-learn, LightGBM, XGBoost, or CatBoost in a .joblib or .pkl file. Loading
such a file runs the code in it, so load only files that you trust. An estimator is converted to ONNX, and its own predict and
predict_proba are compared with the export. For an .onnx file the expected results are columns of the CSV: `label`;
`probability_LABEL` or `score_NAME` for each class; or the targets of --targets. Other columns are the features, by name if the
model names them. The status is 0 for success, 1 for a model that is refused, and 2 for an invalid argument."""


def add_flags(pack: ArgumentParser) -> None:
    pack.add_argument(
        "model", metavar="MODEL", type=Path, help="an .onnx, .joblib, or .pkl file; a pickle runs code when it is loaded"
    )
    pack.add_argument(
        "--rows", type=Path, metavar="CSV", help="rows with a header (default for .onnx: drawn from the training ranges)"
    )
    pack.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder of the model to write")
    pack.add_argument(
        "--labels", type=Path, metavar="FILE", help="names of the classes (default: label.json next to MODEL, if it exists)"
    )
    pack.add_argument("--label", choices=("argmax", "graph"), help="label to serve where an .onnx file gives two different ones")
    pack.add_argument("--label-column", default="label", metavar="NAME", help="column with the expected label (default label)")
    pack.add_argument("--targets", default="", metavar="NAMES", help="names of the values of a regressor, separated by commas")
    pack.add_argument("--ignore-expected", action="store_true", help="do not compare the columns with expected results")
    pack.add_argument("--name", default="", help="name of the model (default: metadata of the .onnx file, or name of the file)")
    pack.add_argument("--version", default="", help="version of the model (default: metadata of the .onnx file, or 1)")


def pack(_: Any, given: Mapping[str, Any]) -> int:
    """Packs a model and prints the report. Raises BadModel."""
    # --help needs no package.
    from iris_wsgi.packing.packer import PICKLES, pack_model
    from iris_wsgi.packing.proof import PackOptions

    model: Path = given["model"]
    if model.suffix in PICKLES:
        print_error(f"loading {model} runs the code in it; load only files that you trust")
    options = PackOptions(
        label=given["label"],
        labels=given["labels"],
        targets=tuple(filter(None, map(str.strip, given["targets"].split(",")))),
        name=given["name"],
        version=given["version"],
        label_column=given["label_column"],
        compare_columns=not given["ignore_expected"],
    )
    for line in pack_model(model, given["rows"], given["out"], options).lines:
        print_result(line)
    return 0
