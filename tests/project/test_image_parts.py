"""The parts of the image, without a build: the Dockerfile and its lists agree with the project."""

import json
import re
import shutil
import subprocess
import sys
from hashlib import sha256

import pytest
from optional_programs import require_program
from project import MODEL, ROOT

import iris_wsgi

sys.path.insert(0, str(ROOT / "bin/image.d"))
import container_engine
import imports
import lockfile
import rootfs

PARTS = ROOT / "bin/image.d"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
README = (ROOT / "README.md").read_text()
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
    plain_labels = container_engine.labels(ROOT)
    assert {name: result[name] for name in plain_labels if "revision" not in name} == {
        n: v for n, v in plain_labels.items() if "revision" not in n
    }


def test_the_dockerignore_file_includes_every_file_that_the_dockerfile_copies():
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for name in line.split():
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
    assert "COPY model /model\n" in DOCKERFILE


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
            assert hashes.count("--hash") == (1 if package in ("waitress", "psycopg", "redis") else 2), package


def test_the_image_has_the_three_packages_of_an_install_only():
    assert lockfile.WHEEL_PACKAGES["wheels.txt"] == ["numpy", "onnxruntime", "waitress"]


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


def test_the_readme_names_the_image_and_the_command_that_runs_it():
    assert "docker run -d --name iris -p 8000:8000 model-in-image-pattern:v1.0\n" in README
    for command in ("build", "report", "verify", "sbom", "compare", "lock"):
        assert f"bin/image {command}" in README


def test_the_compiled_package_has_each_module_and_its_data_files(tmp_path):
    shutil.copytree(ROOT / "iris_wsgi", tmp_path / "iris_wsgi", ignore=shutil.ignore_patterns("__pycache__"))
    names = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")}
    rootfs.bytecode(tmp_path)
    compiled = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")}
    assert compiled == {name.with_suffix(".pyc") if name.suffix == ".py" else name for name in names}
    assert {name.name for name in compiled if name.suffix != ".pyc"} == {"job_store.lua", "page.html"}
