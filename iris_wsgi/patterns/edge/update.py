"""Brings a bundle from elsewhere to a device: checked file by file, tried here, and in effect at once or not at all."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import read_file
from iris_wsgi.model.download import ArtifactSource, artifact_source
from iris_wsgi.model.session import RUNTIME_VERSION
from iris_wsgi.patterns.edge.bundle import open_bundle
from iris_wsgi.patterns.edge.device_store import Device, State, is_of
from iris_wsgi.patterns.edge.manifest import MANIFEST, MANIFEST_BYTES, File, Manifest, parse_manifest, read_checked
from iris_wsgi.storage.files import replace_file

Known = dict[File, Path]


def update(device: Device, source: str, again: bool = False) -> str:
    """Takes the bundle at `source`, a folder or the http(s) URL of one; one line on what was done.

    The files of the model alone are taken: the others are for browsers. On any failure, at whatever moment, the bundle that
    answers stays the one that was; and so it does where the device went back from the one at `source`, unless it is wanted
    `again`. Raises BadModel.
    """
    with device.changing():
        state, read = device.state(), artifact_source(source)
        content = read(MANIFEST, MANIFEST_BYTES)
        manifest = parse_manifest(content, f"{source.rstrip('/')}/{MANIFEST}")
        manifest.check_runtime(RUNTIME_VERSION)
        if state.went_back and is_of(state.previous, manifest.bundle) and not again:
            return f"{manifest.bundle} is not taken: rollback left it here; --again takes it all the same"
        if state.current is not None and is_of(state.current, manifest.bundle):
            with suppress(BadModel):
                return f"{manifest.bundle} is here already: {device.bundle(state.current).test()}"
        folder = device.new_folder(manifest.bundle)
        known = dict(files_here(device, state))
        brought = sum([bring(read, path, file, folder, known) for path, file in manifest.of_model.items()])
        replace_file(folder / MANIFEST, content)
        result = open_bundle(folder).test()
        device.switch(State(folder.name, state.current))
        return f"took {manifest.bundle} ({about(manifest)}), {brought} of {len(manifest.of_model)} files were new: {result}"


def files_here(device: Device, state: State) -> Iterator[tuple[File, Path]]:
    """What the bundles of the device hold already, if it is not damaged."""
    for name in state.folders:
        with suppress(BadModel):
            bundle = device.bundle(name)
            yield from ((file, bundle.folder / path) for path, file in bundle.manifest.of_model.items())


def bring(read: ArtifactSource, path: str, file: File, folder: Path, known: Known) -> bool:
    """Puts one file into the folder; whether it had to be fetched. Raises BadModel if it is not what the manifest says."""
    if file in known:
        with suppress(BadModel):
            add_file(folder / path, read_checked(lambda _, most: read_file(known[file], most), path, file))
            return False
    add_file(folder / path, read_checked(read, path, file))
    return True


def add_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)


def about(manifest: Manifest) -> str:
    return f"{manifest.name} {manifest.version}"


def roll_back(device: Device) -> str:
    """The bundle before the current one answers again, and the current one is the one before it. Raises BadModel."""
    with device.changing():
        state = device.state()
        if state.previous is None:
            raise BadModel("there is no bundle here to go back to")
        bundle = device.bundle(state.previous)
        result = bundle.test()
        device.switch(State(state.previous, state.current, went_back=True))
        return f"went back to {bundle.manifest.bundle} ({about(bundle.manifest)}): {result}"
