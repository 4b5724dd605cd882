"""A bundle in a folder, and the model in it as its manifest has it."""

from pathlib import Path
from typing import NamedTuple

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import GOLDEN, ArtifactManifest, read_file
from iris_wsgi.model.golden import check_shapes, self_test
from iris_wsgi.model.session import RUNTIME_VERSION, Model, load_model
from iris_wsgi.patterns.edge.manifest import MANIFEST, MODEL, Manifest, parse_manifest


class Bundle(NamedTuple):
    folder: Path
    manifest: Manifest

    def load(self) -> tuple[Model, ArtifactManifest]:
        """The model, every file of which is what the manifest says. Raises BadModel."""
        if (sealed := self.manifest.files.get(MODEL + GOLDEN)) is None:
            raise BadModel(f"{self.manifest.bundle} has no {MODEL}{GOLDEN}")
        model, golden = load_model(self.folder / MODEL, f"sha256:{sealed.sha256}")
        if model.digest != self.manifest.digest:
            raise BadModel(f"{self.manifest.bundle} holds another model than its manifest says")
        return model, golden

    def test(self) -> str:
        """Has the model answer its golden rows here; one line on it. Raises BadModel."""
        self.manifest.check_runtime(RUNTIME_VERSION)
        model, golden = self.load()
        check_shapes(model, [golden.cases[0].row])
        return self_test(model, golden.cases, golden.tolerance)


def open_bundle(folder: Path) -> Bundle:
    """Raises BadModel."""
    return Bundle(folder, parse_manifest(read_file(folder / MANIFEST), str(folder / MANIFEST)))
