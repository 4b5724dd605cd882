"""The parts of the image, without a build: the Dockerfile and its lists agree with the project."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest
from optional_programs import require_program, skip_or_fail
from packed_models import write_model
from project import MODEL, ROOT

import iris_wsgi
from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import manifest_digest

sys.path.insert(0, str(ROOT / "bin/image.d"))
import archive
import container_engine
import imports
import lockfile
import model_folder
import rootfs

PARTS = ROOT / "bin/image.d"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
# The output of bin/edge build is not in the repository.
BUILT = "dist/edge"


def test_the_default_labels_have_the_values_of_this_version_and_model():
    golden = (MODEL / "golden.json").read_bytes()
    document = json.loads(golden)
    result = dict(re.findall(r'([\w.-]+)="(.+)"', DOCKERFILE))
    assert result["org.opencontainers.image.version"] == iris_wsgi.__version__
    assert result["iris-wsgi.model.digest"] == f"sha256:{document['files'][document['model']]}"
    assert result["iris-wsgi.model.seal"] == f"sha256:{sha256(golden).hexdigest()}"
    assert f"ARG MODEL_SEAL={result['iris-wsgi.model.seal']}\n" in DOCKERFILE
    plain_labels = container_engine.labels(ROOT, MODEL)
    of_the_commit = {"org.opencontainers.image.revision", "org.opencontainers.image.created"}
    assert {name: value for name, value in result.items() if name in plain_labels.keys() - of_the_commit} == {
        name: value for name, value in plain_labels.items() if name not in of_the_commit
    }


def test_the_dockerignore_file_includes_every_file_that_the_dockerfile_copies():
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for name in line.replace("${MODEL_FOLDER}", "model").split():
            if name == BUILT:
                assert name in let_through
                continue
            found = [path.relative_to(ROOT) for path in ROOT.glob(name)]
            assert found, name
            for path in found:
                assert any(path.match(rule) or str(path) == rule or rule.startswith(f"{path}/") for rule in let_through), path


def test_the_builder_gets_the_files_of_the_models_and_no_others():
    sealed = {path: json.loads(path.read_text())["files"] for path in MODEL.rglob("golden.json")}
    expected = {path.parent / name for path, files in sealed.items() for name in ("golden.json", *files)}
    assert len(sealed) == 7
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!model")]
    matched = [path for rule in let_through for path in ROOT.glob(rule)]
    assert {inner for path in matched for inner in (path, *path.rglob("*")) if inner.is_file()} == expected
    assert "ARG MODEL_FOLDER=model\nCOPY ${MODEL_FOLDER} /model\n" in DOCKERFILE


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_of_a_user_s_model_the_image_gets_the_files_of_golden_json_and_the_companions_that_belong(tmp_path):
    own = write_model(tmp_path / "own", "weights in a second file")
    (own / "notes.txt").write_text("not for the image")
    (own / "model.pkl").write_bytes(b"not for the image")
    write_model(own / "fast", "weights in a second file")
    shutil.copytree(MODEL / "members/setosa", own / "members/setosa")
    shutil.copytree(MODEL / "pred", own / "pred")
    left_out = model_folder.copy(own, tmp_path / "copy")
    files = {"golden.json", "label.json", "model.onnx", "model.onnx.data"}
    assert files_of(tmp_path / "copy") == files | {f"fast/{name}" for name in files}
    assert [line.partition(":")[0] for line in left_out] == ["members/setosa is left out", "pred is left out"]
    assert "iris_setosa 1.0.0, which does not belong to packed 1: setosa is not one of the classes" in left_out[0]
    assert all(path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644) for path in (tmp_path / "copy").rglob("*"))


def test_the_shipped_model_keeps_all_of_its_companions(tmp_path):
    assert model_folder.copy(MODEL, tmp_path / "copy") == []
    assert sum(name.endswith("golden.json") for name in files_of(tmp_path / "copy")) == 7


@pytest.mark.parametrize("kind", ["regressor", "scores", "columns of several types with missing values"])
def test_models_of_other_kinds_are_copied_with_their_fast_model(tmp_path, kind):
    own = write_model(tmp_path / "own", kind)
    write_model(own / "fast", kind)
    assert model_folder.copy(own, tmp_path / "copy") == []
    assert "fast/model.onnx" in files_of(tmp_path / "copy")


def test_a_wrong_model_is_not_copied(tmp_path):
    own = write_model(tmp_path / "own", "regressor")
    document = json.loads((own / "golden.json").read_text())
    document["rows"][0]["values"][0] += 1000
    (own / "golden.json").write_text(json.dumps(document))
    with pytest.raises(BadModel, match="golden row 0 is off by"):
        model_folder.copy(own, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_labels_of_the_image_are_those_of_the_user_s_model(tmp_path):
    own = write_model(tmp_path / "own", "weights in a second file")
    labels = container_engine.labels(ROOT, own)
    assert labels["iris-wsgi.model.digest"] == manifest_digest(own)
    assert labels["iris-wsgi.model.seal"] == f"sha256:{sha256((own / 'golden.json').read_bytes()).hexdigest()}"


def test_the_time_of_the_image_is_that_of_the_commit_whenever_it_is_built(tmp_path):
    assert container_engine.commit_time(tmp_path) == archive.EPOCH
    date = {"GIT_AUTHOR_DATE": "2020-01-01T00:00:00+00:00", "GIT_COMMITTER_DATE": "2026-11-29T17:00:01+01:00"}
    names = {f"GIT_{role}_{field}": "test" for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL")}
    for words in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "--message", "Test"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, env=os.environ | date | names)
    assert container_engine.commit_time(tmp_path) == "2026-11-29T16:00:01Z"
    assert container_engine.labels(ROOT, MODEL)["org.opencontainers.image.created"] == container_engine.commit_time(ROOT)


@pytest.fixture
def small_image(tmp_path):
    """Builds an image of one file with a tool, and returns its name."""
    made = []

    def build(tool: str) -> str:
        require_program(tool)
        if subprocess.run([tool, "info"], capture_output=True).returncode:
            skip_or_fail(f"{tool} does not work here")
        (tmp_path / "file").write_text("content")
        (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY file /file\n")
        name = f"iris-wsgi-test-{tool}:small"
        label = f"{archive.CREATED_LABEL}=2026-11-29T16:00:01Z"
        command = [tool, "build", "--format", "docker", "--timestamp", "0", "--label", label, "--tag", name, str(tmp_path)]
        subprocess.run(command, check=True, capture_output=True)
        made.append((tool, name))
        return name

    yield build
    for tool, name in made:
        subprocess.run([tool, "rmi", "--force", name], capture_output=True)


@pytest.mark.parametrize("tool", ["podman", "buildah"])
def test_an_archive_for_a_cluster_has_the_name_of_the_manifests_and_the_time_of_the_commit(small_image, tmp_path, tool):
    name = small_image(tool)
    image_id = archive.normalize(tool, name)
    full_name = container_engine.full_name(f"localhost/{name}")
    assert archive.write_normalized(tool, name, full_name, tmp_path / "image.tar") == image_id
    with tarfile.open(tmp_path / "image.tar") as file:
        (manifest,) = json.load(file.extractfile("manifest.json"))
        config = json.load(file.extractfile(manifest["Config"]))
    assert manifest["RepoTags"] == [f"docker.io/library/iris-wsgi-test-{tool}:small"]
    assert {config["created"], *(layer["created"] for layer in config["history"])} == {"2026-11-29T16:00:01Z"}


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("model:v1", "docker.io/library/model:v1"),
        ("localhost/model:v1", "docker.io/library/model:v1"),
        ("team/model:v1", "docker.io/team/model:v1"),
        ("registry.example/model:v1", "registry.example/model:v1"),
        ("localhost:5000/model:v1", "localhost:5000/model:v1"),
    ],
)
def test_a_cluster_finds_an_image_whichever_tool_named_it(tag, name):
    assert container_engine.full_name(tag) == name


def test_a_user_s_model_needs_a_name_of_the_image():
    command = [sys.executable, "-B", PARTS, "build", "--model-dir", MODEL / "fast"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "bin/image: an image with your own model needs a name: add --tag NAME\n")


def test_an_edge_bundle_of_another_model_is_not_built_into_the_image(tmp_path):
    specification = importlib.util.spec_from_file_location("image_commands", PARTS / "__main__.py")
    commands = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(commands)
    own = write_model(tmp_path / "own", "map of numbers")
    digest = manifest_digest(own)
    commands.check_bundle({"digest": digest}, own)
    commands.check_bundle({"digest": "sha256:0", "source": digest}, own)
    with pytest.raises(
        container_engine.EngineError, match=f"a bundle of the model sha256:1, and {own} has {digest}: run bin/edge"
    ):
        commands.check_bundle({"digest": digest, "source": "sha256:1"}, own)


def test_the_bundle_is_a_separate_layer_and_nothing_is_built_without_it():
    stages = dict(re.findall(r"^FROM (\S+ AS \S+)$((?:.|\n)*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE))
    words = [line for line in stages["release AS edge"].splitlines() if line and not line.startswith("#")]
    assert words == [f"COPY {BUILT} /edge", "ENV IRIS_EDGE_DIR=/edge"]
    assert all(BUILT not in stage for name, stage in stages.items() if name != "release AS edge")
    assert not re.search(r"^FROM edge|--from=edge", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("arch", lockfile.ARCHITECTURES)
def test_each_debian_package_is_locked_by_version_and_hash(arch):
    lines = (PARTS / f"debian.{arch}.lock").read_text().splitlines()
    assert re.fullmatch(r"# snapshot \d{8}T\d{6}Z", lines[1])
    names = [re.fullmatch(rf"[0-9a-f]{{64}}  ([a-z0-9.+-]+)_[^_ ]+_(?:{arch}|all)\.deb", line)[1] for line in lines[2:]]
    assert names == lockfile.DEBIAN_PACKAGES


def test_each_wheel_is_locked_for_both_architectures():
    for name, packages in lockfile.WHEEL_PACKAGES.items():
        blocks = re.findall(
            r"^([\w-]+)==\S+((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", (PARTS / name).read_text(), re.MULTILINE
        )
        assert [package for package, _ in blocks] == packages
        for package, hashes in blocks:
            assert hashes.count("--hash") == (1 if package in ("waitress", "flask-swagger-ui", "psycopg", "redis") else 2), (
                package
            )


def test_the_image_has_the_three_packages_of_an_install_only():
    assert lockfile.WHEEL_PACKAGES["wheels.txt"] == ["numpy", "onnxruntime", "waitress"]


def test_of_the_api_page_the_image_has_two_compressed_files_of_less_than_a_megabyte(tmp_path):
    spec = importlib.util.find_spec("flask_swagger_ui")
    assert spec is not None and spec.submodule_search_locations
    shutil.copytree(Path(spec.submodule_search_locations[0]), tmp_path / "wheels/flask_swagger_ui")
    rootfs.copy_packages(tmp_path / "wheels", tmp_path / "root")
    rootfs.compress_files(tmp_path / "root/flask_swagger_ui/dist", "*.css", "*.js")
    files = [path for path in (tmp_path / "root").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"LICENSE", "swagger-ui-bundle.js.gz", "swagger-ui.css.gz"}
    assert sum(path.stat().st_size for path in files) < 1_000_000


def test_an_import_that_the_image_cannot_satisfy_is_found(tmp_path, capsys):
    for part in ("root", "app"):
        (tmp_path / part / imports.FOLDERS[2]).mkdir(parents=True)
    root, app = tmp_path / "root", tmp_path / "app"
    (root / imports.FOLDERS[0] / "json").mkdir(parents=True)
    (root / imports.FOLDERS[0] / "json/__init__.py").write_text(
        "from .decoder import x\nimport sys\ndef f():\n    import never\n"
    )
    (root / imports.FOLDERS[0] / "json/decoder.py").write_text("try:\n    import optional\nexcept ImportError:\n    pass\n")
    (root / imports.FOLDERS[1]).mkdir(parents=True)
    (root / imports.FOLDERS[1] / "mmap.cpython-313.so").write_text("")
    own_module = app / imports.FOLDERS[2] / "ours"
    own_module.mkdir()
    (own_module / "__init__.py").write_text(
        "import json, mmap, os.path, collections.abc\nfrom ours import one\nfrom ours.one import two\n"
    )
    (own_module / "one.py").write_text("two = 2\n")
    assert imports.main([root, app]) == 0
    (own_module / "redis.py").write_text("import redis\n")
    assert imports.main([root, app], ["redis"]) == 0 and imports.main([root, app]) == 1
    (own_module / "redis.py").write_text("import never, concurrent.futures\n")
    (own_module / "console.py").write_text("def bar():\n    from tqdm import tqdm\n")
    assert imports.main([root, app], ["redis", "tqdm"]) == 0 and imports.main([root, app], ["redis"]) == 1
    for name in ("redis", "console"):
        (own_module / f"{name}.py").unlink()
    (own_module / "one.py").write_text("def later():\n    from .two import three\n    import csv\n")
    (root / imports.FOLDERS[0] / "json/decoder.py").write_text("import gone\n")
    assert imports.main([root, app]) == 1
    result = capsys.readouterr().err
    assert "ours/redis.py imports redis\n" in result
    result = result.partition("imports tqdm\n")[2]
    assert [line.split(" imports ")[1] for line in result.split("\n") if line] == ["gone", "csv", "ours.two"]


def test_hadolint_finds_no_fault_in_the_dockerfile():

    for file in (ROOT / "Dockerfile", PARTS / "tutorial/Dockerfile"):
        result = subprocess.run([require_program("hadolint"), file], capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (0, "")


def test_the_documents_name_the_image_and_the_commands_that_run_and_make_it():
    assert "docker run -d --name iris -p 8000:8000 model-in-image-pattern:v1.0\n" in README
    for command in ("build", "report", "verify", "sbom", "compare", "lock"):
        assert f"bin/image {command}" in OPERATIONS


def test_the_compiled_package_has_each_module_and_its_data_files(tmp_path):
    shutil.copytree(ROOT / "iris_wsgi", tmp_path / "iris_wsgi", ignore=shutil.ignore_patterns("__pycache__"))
    names = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")}
    rootfs.bytecode(tmp_path)
    compiled = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")}
    assert compiled == {name.with_suffix(".pyc") if name.suffix == ".py" else name for name in names}
    assert {name.name for name in compiled if name.suffix != ".pyc"} == {
        "job_store.lua",
        "page.html",
        "page.css",
        "page.js",
        "patterns.js",
    }
