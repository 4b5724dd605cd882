"""Conversion of fitted estimators to ONNX, by the converter of each library."""

import copy
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iris_wsgi.codec.model_schema import Array
from iris_wsgi.console import remedy_for_extra
from iris_wsgi.errors import BadModel
from iris_wsgi.packing.reference import first_sentence, is_booster, library_of
from iris_wsgi.packing.sample import RowSample

# onnxruntime 1.23, the oldest one that the server takes, guarantees these operator sets.
OPSETS = {"": 18, "ai.onnx.ml": 3}
# The converters of onnxmltools know no later one.
BOOSTER_OPSET = 15
INPUT = "input"
BOOSTERS = ("lightgbm", "xgboost", "catboost")


class Layout(NamedTuple):
    """Inputs of a graph: one tensor of all features, or one input per column, with float32 or float64 numbers."""

    per_column: bool
    double: bool

    def type_of(self, column: Array, missing: bool) -> str:
        """Returns the type of the input of a column."""
        number = "float64" if self.double else "float32"
        if column.dtype == object:
            return "string"
        if not self.per_column or missing or column.dtype.kind == "f":
            return number
        return "bool" if column.dtype == bool else "int64"

    def __str__(self) -> str:
        number = "float64" if self.double else "float32"
        return f"one {number} input per column" if self.per_column else f"one {number} tensor"


TENSOR, COLUMNS = Layout(False, False), Layout(True, False)
DOUBLE_TENSOR, DOUBLE_COLUMNS = Layout(False, True), Layout(True, True)


class ConversionFailed(BadModel):
    """Raised if a converter cannot convert an estimator with some inputs."""


def layouts(estimator: Any, sample: RowSample) -> list[Layout]:
    """Returns the inputs to try, best first. Float64 comes first if different values of the rows are equal in float32."""
    if library_of(estimator) == "catboost" or is_booster(estimator):
        # Their exporters know no other input.
        return [TENSOR]
    tensors, columns = [TENSOR, DOUBLE_TENSOR], [COLUMNS, DOUBLE_COLUMNS]
    if len({column.dtype for column in sample.columns}) == 1 and not sample.named and sample.has_strings():
        return [TENSOR]
    found = columns if sample.has_strings() else [TENSOR, COLUMNS, DOUBLE_TENSOR, DOUBLE_COLUMNS] if sample.named else tensors
    return sorted(found, key=lambda layout: not layout.double) if sample.collapsed() else found


def convert(estimator: Any, layout: Layout, sample: RowSample, is_classifier: bool) -> bytes:
    """Returns the graph of an estimator. Raises ConversionFailed."""
    if sample.has_strings() and library_of(estimator) in BOOSTERS:
        raise ConversionFailed(
            f"{type(estimator).__name__} takes text as categories of its library, which ONNX does not have: train a Pipeline with"
            " OneHotEncoder for the columns of text"
        )
    if library_of(estimator) == "catboost":
        return convert_catboost(estimator)
    with quiet():
        try:
            if is_booster(estimator):
                return convert_booster(estimator, len(sample.columns))
            return convert_estimator(estimator, layout, sample, is_classifier)
        except ImportError as error:
            raise BadModel(
                f"{type(estimator).__name__} needs a package that is not installed ({error}): {remedy_for_extra('pack')}"
            ) from None
        except Exception as error:
            raise ConversionFailed(f"{type(estimator).__name__} cannot be converted: {first_sentence(error)}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the warnings and the printed lines of converters."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        warnings.simplefilter("ignore")
        yield


def convert_catboost(estimator: Any) -> bytes:
    """Returns the graph of CatBoost's own exporter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            estimator.save_model(str(path), format="onnx")
        except Exception as error:
            text = first_sentence(error).rpartition(": ")[2]
            raise ConversionFailed(f"CatBoost cannot export {type(estimator).__name__} as ONNX: {text}") from None
        return path.read_bytes()


def convert_booster(booster: Any, width: int) -> bytes:
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    types = [(INPUT, FloatTensorType([None, width]))]
    if library_of(booster) == "lightgbm":
        graph = onnxmltools.convert_lightgbm(booster, initial_types=types, zipmap=False, target_opset=BOOSTER_OPSET)
    else:
        graph = onnxmltools.convert_xgboost(without_names(booster), initial_types=types, target_opset=BOOSTER_OPSET)
    content: bytes = graph.SerializeToString()
    return content


def convert_estimator(estimator: Any, layout: Layout, sample: RowSample, is_classifier: bool) -> bytes:
    """Converts with skl2onnx, which uses the converters of onnxmltools for steps of LightGBM and XGBoost."""
    import skl2onnx

    register_boosters(estimator)
    estimator = without_names(estimator)
    types = initial_types(layout, sample)
    exact = step_options(estimator, layout)
    with whole_attributes():
        for options in ({id(estimator): {"zipmap": False}}, {}) if is_classifier else ({},):
            try:
                given = {**exact, **options} or None
                graph = skl2onnx.convert_sklearn(estimator, initial_types=types, target_opset=OPSETS, options=given)
            except NameError:
                # A classifier without ZipMap, such as LinearSVC, does not know the option.
                continue
            content: bytes = graph.SerializeToString()
            return content
    raise ValueError("its converter has no option zipmap")


def step_options(estimator: Any, layout: Layout) -> dict[int, Any]:
    """Returns the options of steps by which a scaler divides in float64, and by which texts need no other locale.

    The default locale, en_US.UTF-8, is missing in most containers. C.UTF-8 has the same lower case.
    """
    options: dict[int, Any] = {}
    for part in parts_of(estimator):
        if layout.double and type(part).__name__ == "StandardScaler":
            options[id(part)] = {"div": "div"}
        elif type(part).__name__ in ("TfidfVectorizer", "CountVectorizer"):
            options[id(part)] = {"locale": "C.UTF-8"}
    return options


def initial_types(layout: Layout, sample: RowSample) -> list[tuple[str, Any]]:
    from skl2onnx.common import data_types

    classes = {
        "float32": data_types.FloatTensorType,
        "float64": data_types.DoubleTensorType,
        "int64": data_types.Int64TensorType,
        "bool": data_types.BooleanTensorType,
        "string": data_types.StringTensorType,
    }
    kinds = [layout.type_of(column, sample.has_missing(j)) for j, column in enumerate(sample.columns)]
    if layout.per_column:
        return [(name, classes[kind]([None, 1])) for name, kind in zip(sample.names, kinds, strict=True)]
    return [(INPUT, classes[kinds[0]]([None, len(kinds)]))]


@contextmanager
def whole_attributes() -> Iterator[None]:
    """Makes skl2onnx write booleans of attributes as integers. Protobuf 7 refuses those of gradient boosting."""
    from skl2onnx.common import _container

    original: Callable[..., Any] = _container.make_node

    def make_node(*given: Any, **named: Any) -> Any:
        return original(*given, **{name: whole(value) for name, value in named.items()})

    _container.make_node = make_node
    try:
        yield
    finally:
        _container.make_node = original


def whole(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(one, (bool, np.bool_)) for one in value):
        return [int(one) for one in value]
    return value


def register_boosters(estimator: Any) -> None:
    """Registers the converters of LightGBM and XGBoost for steps of pipelines."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common import shape_calculator

    classifier = shape_calculator.calculate_linear_classifier_output_shapes
    regressor = shape_calculator.calculate_linear_regressor_output_shapes
    for step in {type(part): part for part in parts_of(estimator)}.values():
        library, kind = library_of(step), type(step)
        if library not in ("lightgbm", "xgboost") or is_booster(step):
            continue
        is_class = hasattr(step, "predict_proba")
        options = {"nocl": [True, False], "zipmap": [True, False, "columns"]} if is_class else {"split": None}
        update_registered_converter(
            kind,
            f"{library}{kind.__name__}",
            float_outputs(classifier if is_class else regressor),
            float_input(booster_converter(library)),
            options=options if is_class or library == "lightgbm" else None,
        )


def booster_converter(library: str) -> Callable[..., None]:
    from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm
    from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost

    found: Callable[..., None] = convert_lightgbm if library == "lightgbm" else convert_xgboost
    return found


def float_outputs(calculate: Callable[[Any], None]) -> Callable[[Any], None]:
    """Returns a calculator of output shapes whose values are float32, also after a float64 input."""
    from skl2onnx.common.data_types import FloatTensorType

    def calculate_floats(operator: Any) -> None:
        calculate(operator)
        operator.outputs[-1].set_type(FloatTensorType(operator.outputs[-1].type.shape))

    return calculate_floats


def float_input(converter: Callable[..., None]) -> Callable[..., None]:
    """Returns a converter that casts a float64 input to float32, as XGBoost does before it compares with a threshold."""
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    def convert_float(scope: Any, operator: Any, container: Any) -> None:
        given = operator.inputs[0]
        if isinstance(given.type, DoubleTensorType):
            cast = scope.declare_local_variable("cast", FloatTensorType(given.type.shape))
            container.add_node("Cast", given.onnx_name, cast.onnx_name, to=1, name=scope.get_unique_operator_name("Cast"))
            operator = WithInput(operator, cast)
        converter(scope, operator, container)

    return convert_float


class WithInput:
    """An operator of skl2onnx with another input. The lists of an operator cannot be changed."""

    def __init__(self, operator: Any, variable: Any) -> None:
        self.operator, self.inputs, self.input_full_names = operator, [variable], [variable.onnx_name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.operator, name)


def without_names(estimator: Any) -> Any:
    """Returns the estimator, or a copy in a form that the converters know.

    The converter of XGBoost takes feature names f0, f1, … only. That of VotingClassifier refuses an option of transform().
    """
    parts = list(parts_of(estimator))
    if not any(library_of(part) == "xgboost" or getattr(part, "flatten_transform", False) for part in parts):
        return estimator
    changed = copy.deepcopy(estimator)
    for part in parts_of(changed):
        if is_booster(part) and library_of(part) == "xgboost":
            part.feature_names = None
        elif library_of(part) == "xgboost" and part.__sklearn_is_fitted__():
            part.get_booster().feature_names = None
        elif getattr(part, "flatten_transform", False):
            part.flatten_transform = False
    return changed


def parts_of(estimator: Any) -> Iterator[Any]:
    """Yields an estimator and the fitted estimators inside it, at any depth."""
    seen: set[int] = set()
    waiting = [estimator]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if hasattr(part, "predict") or hasattr(part, "transform"):
            yield part
            waiting.extend(getattr(part, "__dict__", {}).values())
        elif isinstance(part, dict):
            waiting.extend(part.values())
        elif isinstance(part, (list, tuple)):
            waiting.extend(part)
        elif isinstance(part, np.ndarray) and part.dtype == object:
            waiting.extend(part.ravel().tolist())
        elif library_of(part) == "sklearn":
            # Such as the calibrated classifiers of CalibratedClassifierCV.
            waiting.extend(getattr(part, "__dict__", {}).values())


def feature_names(estimator: Any) -> tuple[str, ...] | None:
    """Returns the names of the columns with which an estimator was trained. None means that it was trained on an array."""
    names: Sequence[Any] | None
    if is_booster(estimator):
        names = estimator.feature_name() if library_of(estimator) == "lightgbm" else estimator.feature_names
    elif library_of(estimator) == "catboost":
        names = getattr(estimator, "feature_names_", None)
    else:
        try:
            names = getattr(estimator, "feature_names_in_", None)
        except Exception:
            names = None
    found = None if names is None else tuple(map(str, names))
    # LightGBM and CatBoost make names for the columns of an array.
    made = [tuple(f"{prefix}{i}" for i in range(len(found or ()))) for prefix in ("Column_", "")]
    return None if not found or found in made else found


def feature_count(estimator: Any) -> int | None:
    """Returns the number of features of an estimator, or None if unknown."""
    if is_booster(estimator):
        count = estimator.num_feature() if library_of(estimator) == "lightgbm" else estimator.num_features()
        return int(count)
    try:
        found = getattr(estimator, "n_features_in_", None)
    except Exception:
        found = None
    # A CatBoost model has 0 after its pickle was loaded.
    return int(found) if found else None


def text_columns(estimator: Any, names: Sequence[str]) -> list[int]:
    """Returns the positions of the columns that a step learned as text, such as OneHotEncoder. A CSV does not have the types."""
    found: set[str] = set()
    for part in parts_of(estimator):
        members = getattr(part, "__dict__", {})
        inputs, learned = members.get("feature_names_in_"), members.get("categories_", members.get("statistics_"))
        if inputs is None or learned is None or len(inputs) != len(learned):
            continue
        for name, values in zip(inputs, learned, strict=True):
            if any(isinstance(value, str) for value in np.ravel(np.asarray(values, object)).tolist()):
                found.add(str(name))
    return [j for j, name in enumerate(names) if name in found]
