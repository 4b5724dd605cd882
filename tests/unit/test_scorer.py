"""The scorer of tables: each type of argument gets the predictions of the server, and bad rows get their errors."""

import csv
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
from chosen_models import pack_classifier, pack_mixed, pack_regressor
from hypothesis import given, settings
from hypothesis import strategies as st
from iris_data import NAMES
from optional_programs import require_package
from packed_models import ALL_KINDS, BROKEN, KINDS, answers_of, write_model
from project import MODEL, ROOT
from property_tests import examples
from pyarrow.parquet import read_table, write_table
from racing_threads import race

from iris_wsgi import scorer as scorer_module
from iris_wsgi.cli.main import main
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import GOLDEN, parse_golden, read_file
from iris_wsgi.scorer import Scorer

with (MODEL / "training.csv").open() as training:
    IRIS_ROWS = [[float(row[name]) for name in NAMES] for row in csv.DictReader(training)]
VALUES = [f"probability_{label}" for label in ("setosa", "versicolor", "virginica")]
ADDED = ["label", *VALUES, "error"]
ARROW_TYPES = {"string": arrow.string(), "bool": arrow.bool_(), "float32": arrow.float32(), "float64": arrow.float64()}
TYPES = ("batch", "table", "chunks", "slice", "frame", "mapping", "array")


def iris_table(rows: list[list[float]] = IRIS_ROWS, **columns: Any) -> arrow.Table:
    given = dict(zip(NAMES, (arrow.array(column, arrow.float64()) for column in zip(*rows, strict=True)), strict=True))
    return arrow.table(given | columns)


def as_type(kind: str, table: arrow.Table) -> Any:
    """Returns the rows of a table as another type of argument. "array" has the features only."""
    if kind == "batch":
        return arrow.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=table.schema)
    if kind == "chunks":
        middle = table.num_rows // 2
        return arrow.concat_tables([table.slice(0, middle), table.slice(middle, 0), table.slice(middle)])
    if kind == "slice":
        return as_type("batch", arrow.concat_tables([table, table, table])).slice(table.num_rows, table.num_rows)
    if kind == "frame":
        require_package("pandas")
        return table.to_pandas()
    columns = {name: table.column(name).to_numpy() for name in table.schema.names}
    return columns if kind == "mapping" else as_array([*columns.values()]) if kind == "array" else table


def as_array(columns: list[np.ndarray]) -> np.ndarray:
    """Returns columns as one array [n, columns], of objects if they have no common type."""
    found = np.empty((len(columns[0]), len(columns)), object)
    for j, column in enumerate(columns):
        found[:, j] = column
    return found if any(column.dtype == object for column in columns) else np.stack(columns, axis=1)


def columns_of(result: Any) -> dict[str, list[Any]]:
    """Returns the columns of a result as lists. Missing values are None, except in columns of numpy's floats."""
    if isinstance(result, np.ndarray):
        return {name: result[name].tolist() for name in result.dtype.names}
    if isinstance(result, dict):
        return {name: column.tolist() for name, column in result.items()}
    if isinstance(result, (arrow.RecordBatch, arrow.Table)):
        return result.to_pydict()
    return {name: [None if value != value else value for value in result[name].tolist()] for name in result.columns}


def bits(value: float | None) -> bytes | None:
    """Returns the bits of a float32. None and NaN are missing values."""
    return None if value is None or value != value else struct.pack("<f", value)


def outcome(result: Any, names: list[str], label: bool = True) -> list[tuple[Any, ...]]:
    """Returns the label, the bits of the values, and the error of each row."""
    columns = columns_of(result)
    assert label is ("label" in columns)
    labels = columns["label"] if label else [None] * len(columns["error"])
    values = [list(map(bits, columns[name])) for name in names]
    return list(zip(labels, *values, columns["error"], strict=True))


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(MODEL)


@pytest.fixture
def loads(monkeypatch) -> list[Path]:
    """Folders of the models that this process loads. It forgets the models of earlier tests."""
    found: list[Path] = []
    load = scorer_module.load_verified_model

    def counted(folder: Path, seal: str) -> Any:
        found.append(folder)
        return load(folder, seal)

    monkeypatch.setattr(scorer_module, "load_verified_model", counted)
    monkeypatch.setattr(scorer_module, "VERIFIED_MODELS", scorer_module.VerifiedModels())
    return found


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_gets_the_bits_of_the_server(app, scorer, kind):
    answer = app.post_json("/predict/batch", {"data": IRIS_ROWS}).json
    expected = [
        (label, *map(bits, values), None) for label, values in zip(answer["labels"], answer["probabilities"], strict=True)
    ]
    given = as_type(kind, iris_table())
    result = scorer(given)
    assert outcome(result, VALUES) == expected
    assert type(result) is type(given) and list(columns_of(result)) == [*NAMES, *ADDED]


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("given", TYPES)
def test_each_kind_of_model_gives_the_values_of_the_graph(kind, given, tmp_path):
    folder = write_model(tmp_path / "model", kind)
    model = KINDS[kind]
    columns = {
        name: arrow.array(column, ARROW_TYPES.get(type_name, arrow.int64()))
        for (name, type_name, _), column in zip(model.features, zip(*model.rows, strict=True), strict=True)
    }
    result = Scorer(folder)(as_type(given, arrow.table(columns)))
    answers = answers_of(folder, model, model.rows)
    names = list(columns_of(result))[len(columns) + bool(model.labels) : -1]
    prefix = {"scores": "score_", "regressor": ""}.get(model.members.get("kind", ""), "probability_")
    assert names == [prefix + name for name in model.members.get("columns", model.labels)]
    labels = answers.labels if model.labels else [None] * len(model.rows)
    expected = [(label, *map(bits, values), None) for label, values in zip(labels, answers.values, strict=True)]
    assert outcome(result, names, bool(model.labels)) == expected


BAD_VALUES = [5.1, 3.0, 0.0, -0.0, None, float("inf"), -float("inf"), 1e39, 3.4028235677973362e38]


@settings(deadline=None, max_examples=examples(200))
@given(st.lists(st.lists(st.sampled_from(BAD_VALUES) | st.floats(-10, 10), min_size=4, max_size=4), min_size=1, max_size=12))
def test_each_type_gives_the_same_for_rows_with_bad_values(scorer, rows):
    table = iris_table(rows)
    expected = outcome(scorer(table), VALUES)
    for row, (label, *values, error) in zip(rows, expected, strict=True):
        assert (error is None) is all(value is not None and abs(value) <= 3.4028235677973362e38 for value in row)
        assert (error is None) is (label is not None) and (error is None) is all(values)
    for kind in TYPES:
        assert outcome(scorer(as_type(kind, table)), VALUES) == expected, kind


@settings(deadline=None, max_examples=examples(100))
@given(
    st.lists(
        st.tuples(
            st.none() | st.floats(18, 90, width=32),
            st.none() | st.sampled_from([1, 9, 2**40]) | st.integers(-5, 5),
            st.none() | st.sampled_from(["Tokyo", "Lima", "", "é"]),
            st.none() | st.booleans(),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_each_type_gives_the_same_for_rows_of_several_types(mixed_folder, rows):
    kinds = [arrow.float32(), arrow.int64(), arrow.string(), arrow.bool_()]
    scorer = Scorer(mixed_folder)
    names = [feature.name for feature in scorer.model.features]
    table = arrow.table({n: arrow.array(c, k) for n, c, k in zip(names, zip(*rows, strict=True), kinds, strict=True)})
    values = ["probability_no", "probability_yes, <i>maybe</i>"]
    expected = outcome(scorer(table), values)
    for row, (*_, error) in zip(rows, expected, strict=True):
        missing = [name for name, value in zip(names[1:], row[1:], strict=True) if value is None]
        assert error == (f"{missing[0]} is empty" if missing else None)
    words = table.set_column(2, names[2], table.column(2).dictionary_encode())
    for kind in TYPES:
        assert outcome(scorer(as_type(kind, table)), values) == expected, kind
    for kind in ("batch", "chunks", "slice", "frame"):
        assert outcome(scorer(as_type(kind, words)), values) == expected, kind


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory) -> Path:
    return pack_mixed(tmp_path_factory.mktemp("mixed") / "model")


def test_the_results_are_those_of_the_command_batch_with_its_errors(scorer, tmp_path, restored_signals):
    rows = [*IRIS_ROWS, [None, 3.0, 1.0, 1.0], [5.0, 3.0, 1e39, 1.0], *IRIS_ROWS * 60, [5.0, 3.0, 1.0, float("nan")]]
    table = iris_table(rows, id=arrow.array(range(len(rows))))
    write_table(table, tmp_path / "in.parquet")
    main(["batch", str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), "--keep", "id", "--quiet"])
    result = scorer(table)
    good = result.column("error").is_null()
    written = read_table(tmp_path / "out.parquet").to_pydict()
    assert {name: result.filter(good).column(name).to_pylist() for name in written} == written
    with (tmp_path / "out.parquet.errors.csv").open() as file:
        listed = {int(row["line"]) - 1: f"{row['column']} {row['reason']}" for row in csv.DictReader(file)}
    assert {i: error for i, error in enumerate(result.column("error").to_pylist()) if error} == listed
    assert listed == {
        150: "sepal_length is empty",
        151: "petal_length is not finite as a 32-bit float",
        len(rows) - 1: "petal_width is not finite as a 32-bit float",
    }


@pytest.mark.parametrize("kind", TYPES)
def test_a_batch_without_rows_gets_the_columns(scorer, kind):
    empty = iris_table().slice(0, 0)
    result = scorer(as_type(kind, empty))
    assert columns_of(result) == {name: [] for name in [*NAMES, *ADDED]}
    if kind in ("batch", "table"):
        assert result.schema == scorer(as_type(kind, iris_table())).schema


@pytest.mark.parametrize("kind", TYPES)
def test_a_batch_of_bad_rows_only_keeps_the_types_of_the_columns(scorer, kind):
    result = scorer(as_type(kind, iris_table([[None] * 4] * 3)))
    assert outcome(result, VALUES) == [(None, None, None, None, "sepal_length is empty")] * 3
    good = scorer(as_type(kind, iris_table()))
    for name in ADDED:
        if isinstance(result, (arrow.RecordBatch, arrow.Table)):
            assert result.schema.field(name) == good.schema.field(name)
        else:
            assert result[name].dtype == good[name].dtype


@pytest.mark.parametrize("kind", TYPES[:-1])
def test_only_the_kept_columns_are_copied(kind):
    table = iris_table(id=arrow.array([f"k{i}" for i in range(150)]), label=arrow.array([1] * 150))
    result = Scorer(MODEL, keep=["petal_width", "id"])(as_type(kind, table))
    assert list(columns_of(result)) == ["petal_width", "id", *ADDED]
    assert columns_of(result)["id"] == [f"k{i}" for i in range(150)]
    assert list(columns_of(Scorer(MODEL, keep=[])(as_type(kind, table)))) == ADDED


@pytest.mark.parametrize("kind", TYPES[:-1])
def test_a_column_that_would_be_doubled_is_refused(scorer, kind):
    for name in ADDED:
        given = as_type(kind, iris_table(**{name: arrow.array([1] * 150)}))
        with pytest.raises(ValueError, match=f"the batch has a column '{name}', .* list the columns to copy by keep="):
            scorer(given)


@pytest.mark.parametrize("kind", TYPES[:-1])
def test_columns_are_found_in_any_spelling_or_by_their_exact_names(scorer, kind):
    rows = iris_table([[5.1, 3.5, 1.4, 0.2], [5.1, None, 1.4, 0.2]])
    spelled = as_type(kind, rows.rename_columns(["Sepal Length (cm)", "sepal.width", "PETAL_LENGTH", "petal width"]))
    result = columns_of(scorer(spelled))
    assert result["label"] == ["setosa", None] and result["error"] == [None, "sepal.width is empty"]
    renamed = as_type(kind, rows.rename_columns(["a", "b", "c", "d"]).select(["d", "c", "b", "a"]))
    result = columns_of(Scorer(MODEL, features=["a", "b", "c", "d"])(renamed))
    assert result["label"] == ["setosa", None] and result["error"] == [None, "b is empty"]


def test_a_table_keeps_the_metadata_and_a_frame_its_index(scorer):
    pandas = require_package("pandas")
    table = iris_table().replace_schema_metadata({"origin": "test"})
    assert scorer(table).schema.metadata == {b"origin": b"test"}
    frame = pandas.DataFrame(IRIS_ROWS[:3], columns=NAMES, index=[7, 7, 5])
    assert scorer(frame).index.tolist() == [7, 7, 5] and frame.columns.tolist() == [*NAMES]
    table = arrow.Table.from_pandas(frame)
    assert scorer(table).to_pandas().index.tolist() == [7, 7, 5]
    assert Scorer(MODEL, keep=["petal_width"])(table).to_pandas().columns.tolist() == ["petal_width", *ADDED]


def test_columns_of_pandas_may_be_of_its_own_types(scorer):
    pandas = require_package("pandas")
    frame = pandas.DataFrame(
        {
            "sepal_length": pandas.array([5.1, None], "Float64"),
            "sepal_width": pandas.array([3, 4], "Int8"),
            "petal_length": pandas.Categorical([1.4, 4.0]),
            "petal_width": pandas.Series([0.2, 1], dtype="float[pyarrow]"),
        }
    )
    assert scorer(frame)["error"].fillna("").tolist() == ["", "sepal_length is empty"]


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", ">f8", "int8", "uint64", object])
def test_arrays_may_be_of_any_type_of_numbers_and_in_any_memory_order(scorer, dtype):
    rows = np.array([[5, 3, 1, 0], [6, 3, 4, 1], [7, 3, 6, 2]])
    expected = outcome(scorer(rows.astype(np.float64)), VALUES)
    for array in (rows.astype(dtype), np.asfortranarray(rows.astype(dtype)), np.repeat(rows.astype(dtype), 2, 0)[::2]):
        assert outcome(scorer(array), VALUES) == expected
        columns = {name: array[:, j] for j, name in enumerate(NAMES)}
        assert outcome(scorer(columns), VALUES) == expected


def test_floats_of_16_bits_with_null_are_read(scorer):
    half = iris_table([[5.0, 3.5, 1.5, 0.25], [5.0, 3.5, None, 0.25]]).cast(
        arrow.schema([(name, arrow.float16()) for name in NAMES])
    )
    assert scorer(half).column("error").to_pylist() == [None, "petal_length is empty"]


def test_a_regressor_has_no_column_of_labels(tmp_path):
    scorer = Scorer(pack_regressor(tmp_path / "model", ["price", "two words"]))
    result = scorer(arrow.table({"a": [1.5, None], "b": [0.0, 0.0], "c": [0.5, 1]}))
    assert result.schema.names == ["a", "b", "c", "price", "two words", "error"]
    assert result.column("error").to_pylist() == [None, "a is empty"] and result.column("price").null_count == 1


INVALID = {
    "another number of features": (np.zeros((2, 3)), ValueError, r"has the shape \[2, 3\]; it must be \[n, 4\]"),
    "one row": (np.zeros(4), ValueError, r"has the shape \[4\]; it must be \[n, 4\]"),
    "a list": ([[1, 2, 3, 4]], TypeError, "a scorer takes a RecordBatch .* not builtins.list"),
    "a missing column": (
        iris_table().drop_columns("sepal_width"),
        ValueError,
        "has no column 'sepal_width'; it has sepal_length",
    ),
    "two columns": (iris_table().append_column("sepal_width", [[1.0] * 150]), ValueError, "has 2 columns 'sepal_width'"),
    "text": (iris_table(IRIS_ROWS[:2]).set_column(0, "sepal_length", [["a", "b"]]), ValueError, "holds string, which is not num"),
    "a list in a dictionary": ({"a": [1]}, TypeError, "the column 'a' of the dictionary is of the type list"),
    "lengths": ({"a": np.zeros(2), "b": np.zeros(3)}, ValueError, "different lengths: 'a' has 2 rows, 'b' has 3 rows"),
    "a mask": (np.ma.zeros((2, 4)), TypeError, "a masked array has values behind its mask"),
    "a masked column": (dict.fromkeys(NAMES, np.ma.zeros(2)), TypeError, "a masked array has values behind its mask"),
    "a matrix in a column": (
        dict.fromkeys(NAMES, np.zeros((2, 3))),
        ValueError,
        r"has the shape \[2, 3\]; a feature needs \[n\]",
    ),
    "several types": (np.array([[1, 2, 3, "a"], [1, 2, 3, 4]], object), ValueError, "'petal_width' of the batch cannot be read"),
    "complex numbers": (
        np.zeros((2, 4), complex),
        ValueError,
        "the column 'sepal_length' of the batch cannot be read as one type",
    ),
    "two spellings": (
        iris_table().rename_columns(["Sepal Length", *NAMES[1:]]).append_column("sepal.length", [[1.0] * 150]),
        ValueError,
        "ambiguous: 'Sepal Length' and 'sepal.length' fit the feature 'sepal_length'; name those of all features by features=",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_unusable_argument_is_refused(scorer, name):
    given, error, message = INVALID[name]
    with pytest.raises(error, match=message):
        scorer(given)


def test_unusable_names_are_refused():
    with pytest.raises(TypeError, match="keep= must be a list of names"):
        Scorer(MODEL, keep="id")
    with pytest.raises(ValueError, match="features= must be different names"):
        Scorer(MODEL, features=["a", "a", "b", "c"])
    with pytest.raises(ValueError, match="features= names 3 columns, and the model takes 4: sepal_length"):
        Scorer(MODEL, features=["a", "b", "c"])(iris_table())
    with pytest.raises(ValueError, match="has no column 'id'; .* by keep="):
        Scorer(MODEL, keep=["id"])(iris_table())


def test_a_model_whose_columns_would_be_doubled_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the result would have two columns 'error'; run pack"):
        Scorer(pack_regressor(tmp_path / "model", ["error"]))(np.zeros((2, 3)))


def test_without_pyarrow_the_remedy_is_named(scorer, monkeypatch):
    monkeypatch.setitem(sys.modules, "iris_wsgi.tabular.parquet", None)
    with pytest.raises(ImportError, match="needs the package pyarrow: .*parquet"):
        scorer(np.zeros((1, 4)))


@pytest.mark.parametrize("name", BROKEN)
def test_an_output_of_another_shape_raises_and_a_bad_value_is_a_bad_row(name, tmp_path):
    folder = write_model(tmp_path / "model", name)
    rows = np.array([[0.5, 0.5, 0.5, 0.5], [1000.0, 0.5, 0.5, 0.5]], np.float32)
    if name != "not a number":
        with pytest.raises(BadModel, match="The model's (output|label)"):
            Scorer(folder)(rows)
        return
    errors = Scorer(folder)(rows)["error"].tolist()
    assert errors == [None, "the model gives a value that is not a finite number"]


@pytest.mark.parametrize("ship", [False, True])
def test_a_pickled_scorer_works_in_another_process(ship, tmp_path):
    folder = pack_classifier(tmp_path / "model")
    rows = np.array([[1.5, -0.25, 0.5], [np.nan, 1, 1]])
    scorer = Scorer(os.path.relpath(folder), ship=ship)
    expected = outcome(scorer(rows), ["probability_x"])
    program = (
        "import pickle, sys; scorer, rows = pickle.load(sys.stdin.buffer); sys.stdout.buffer.write(pickle.dumps(scorer(rows)))"
    )
    for dumps in (pickle.dumps, require_package("cloudpickle", "test").dumps):
        data = dumps((scorer, rows))
        assert (len(data) > 1000) is ship
        if ship:
            shutil.rmtree(folder, ignore_errors=True)
        temporary = tmp_path / "temporary"
        temporary.mkdir(exist_ok=True)
        environ = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
        run = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, cwd="/", env=environ, check=True)
        assert outcome(pickle.loads(run.stdout), ["probability_x"]) == expected
        assert not list(temporary.iterdir())


def test_a_folder_that_another_machine_lacks_names_the_way_out(tmp_path):
    scorer = Scorer(tmp_path / "absent")
    with pytest.raises(BadModel, match=r"absent is not a folder on this machine; copy .* ship=True"):
        scorer(np.zeros((1, 3)))
    with pytest.raises(BadModel, match=r"golden.json cannot be read"):
        Scorer(tmp_path / "absent", ship=True)


def test_a_damaged_folder_and_another_seal_are_refused(model_copy):
    seal = parse_golden(read_file(model_copy / GOLDEN), GOLDEN).seal
    assert Scorer(model_copy, seal=seal)(np.zeros((1, 4)))["error"].tolist() == [None]
    with pytest.raises(BadModel, match="is sealed with"):
        Scorer(model_copy, seal="sha256:0")(np.zeros((1, 4)))
    with pytest.raises(BadModel, match="is sealed with"):
        Scorer(model_copy, seal="sha256:0", ship=True)
    (graph,) = model_copy.glob("*.onnx")
    graph.write_bytes(graph.read_bytes()[:-1])
    for ship in (False, True):
        with pytest.raises(BadModel, match="the file was changed or damaged"):
            Scorer(model_copy, ship=ship)(np.zeros((1, 4)))


def test_a_model_is_verified_once_in_a_process(loads, model_copy, tmp_path):
    rows = np.array(IRIS_ROWS)
    scorer = Scorer(model_copy)
    assert not loads
    copies = [scorer, Scorer(model_copy, keep=[]), *(pickle.loads(pickle.dumps(scorer)) for _ in range(3))]
    race(*(lambda one=one: one(rows) for one in copies))
    assert loads == [model_copy]
    Scorer(pack_classifier(tmp_path / "other"))(rows[:, :3])
    assert loads == [model_copy, tmp_path / "other"]
    shipped = Scorer(model_copy, ship=True)
    race(*(lambda one=one: one(rows) for one in (shipped, *(pickle.loads(pickle.dumps(shipped)) for _ in range(3)))))
    assert len(loads) == 3


def test_a_changed_folder_is_loaded_again_by_a_new_scorer(loads, tmp_path):
    folder = pack_classifier(tmp_path / "model", ["x", "y", "z"])
    rows, first = np.zeros((1, 3)), Scorer(folder)
    assert "probability_x" in first(rows).dtype.names
    pack_classifier(folder, ["u", "v", "w"])
    assert "probability_u" in pickle.loads(pickle.dumps(first))(rows).dtype.names
    assert "probability_x" in first(rows).dtype.names and len(loads) == 2


def test_a_process_keeps_few_models(loads, tmp_path, monkeypatch):
    monkeypatch.setattr(scorer_module, "MAX_MODELS", 2)
    rows, folders = np.zeros((1, 3)), [pack_classifier(tmp_path / str(i)) for i in range(3)]
    for i in (0, 1, 0, 2, 0, 1):
        Scorer(folders[i])(rows)
    assert [folder.name for folder in loads] == ["0", "1", "2", "1"]


def test_threads_share_a_scorer(scorer):
    table = iris_table(IRIS_ROWS * 100)
    expected = scorer(table)
    results: list[arrow.Table] = []
    race(*[lambda: results.append(Scorer(MODEL)(table)), lambda: results.append(scorer(table))] * 4)
    assert len(results) == 8 and all(result.equals(expected) for result in results)


def test_the_function_for_engines_yields_a_batch_for_each_batch(scorer):
    batches = iris_table().to_batches(max_chunksize=40)
    found = list(scorer.arrow(iter(batches)))
    assert [batch.num_rows for batch in found] == [40, 40, 40, 30]
    assert arrow.Table.from_batches(found).equals(scorer(iris_table()))


def test_the_schema_is_that_of_the_result():
    table = iris_table(id=arrow.array(range(150)))
    for scorer in (Scorer(MODEL), Scorer(MODEL, keep=["id"])):
        assert scorer.schema(table.schema) == scorer(table).schema
    with pytest.raises(ValueError, match="has no column 'sepal_length'"):
        Scorer(MODEL).schema(arrow.schema([("id", arrow.int64())]))
    with pytest.raises(ValueError, match="the column 'sepal_length' of the batch holds string"):
        Scorer(MODEL).schema(table.schema.set(0, arrow.field("sepal_length", arrow.string())))


class StructType:
    """Schema of Spark, as far as the scorer uses it."""

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self.fields = fields
        self.names = [name for name, _ in fields]

    def add(self, name: str, kind: str) -> "StructType":
        return StructType([*self.fields, (name, kind)])


def test_the_schema_of_spark_gets_the_same_columns(tmp_path):
    given = StructType([("id", "bigint"), *((name, "double") for name in NAMES)])
    added = [("label", "string"), *((name, "float") for name in VALUES), ("error", "string")]
    assert Scorer(MODEL).schema(given).fields == given.fields + added
    assert Scorer(MODEL, keep=["id"]).schema(given).fields == [("id", "bigint"), *added]
    with pytest.raises(ValueError, match="has no column 'sepal_length'"):
        Scorer(MODEL).schema(StructType([("id", "bigint")]))
    regressor = Scorer(pack_regressor(tmp_path / "model"), keep=[])
    numbers = StructType([(name, "float") for name in "abc"])
    assert regressor.schema(numbers).fields == [("price", "float"), ("error", "string")]
