"""Update and rollback of the bundle on a device."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import read_file
from iris_wsgi.model.download import ArtifactSource, artifact_source
from iris_wsgi.model.session import RUNTIME_VERSION
from iris_wsgi.patterns.edge.bundle import MANIFEST, MANIFEST_BYTES, ManifestEntry, open_bundle, parse_manifest, read_checked
from iris_wsgi.patterns.edge.device_store import DeviceState, DeviceStore, is_folder_of
from iris_wsgi.storage.files import replace_file

LocalFiles = dict[ManifestEntry, Path]


def update(device: DeviceStore, source: str, again: bool = False) -> str:
    """Installs and activates the bundle at `source`, a folder or an http(s) URL. Returns a line for the user.

    It copies the files of the model only; the others are for browsers. After any failure the current bundle stays. A bundle
    that a rollback left is installed only with `again`. Raises BadModel.
    """
    with device.changing():
        state, read = device.state(), artifact_source(source)
        content = read(MANIFEST, MANIFEST_BYTES)
        manifest = parse_manifest(content, f"{source.rstrip('/')}/{MANIFEST}")
        manifest.check_runtime(RUNTIME_VERSION)
        if state.went_back and is_folder_of(state.previous, manifest.bundle) and not again:
            return f"{manifest.bundle} is not taken: rollback left it here; --again takes it all the same"
        if state.current is not None and is_folder_of(state.current, manifest.bundle):
            with suppress(BadModel):
                return f"{manifest.bundle} is here already: {device.bundle(state.current).test()}"
        folder = device.new_folder(manifest.bundle)
        local = dict(local_files(device, state))
        fetched = sum([add_file(read, path, entry, folder, local) for path, entry in manifest.model_files.items()])
        replace_file(folder / MANIFEST, content)
        result = open_bundle(folder).test()
        device.activate(DeviceState(folder.name, state.current))
        return f"took {manifest.bundle} ({manifest.model}), {fetched} of {len(manifest.model_files)} files were new: {result}"


def local_files(device: DeviceStore, state: DeviceState) -> Iterator[tuple[ManifestEntry, Path]]:
    """Yields the files of the bundles on the device; read_checked() finds damaged ones."""
    for name in state.folders:
        with suppress(BadModel):
            bundle = device.bundle(name)
            yield from ((entry, bundle.folder / path) for path, entry in bundle.manifest.model_files.items())


def add_file(read: ArtifactSource, path: str, entry: ManifestEntry, folder: Path, local: LocalFiles) -> bool:
    """Adds a file to the folder. Returns whether it was fetched. Raises BadModel if it differs from the manifest."""
    content, fetched = None, True
    if entry in local:
        with suppress(BadModel):
            content, fetched = read_checked(lambda _, limit: read_file(local[entry], limit), path, entry), False
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    replace_file(folder / path, read_checked(read, path, entry) if content is None else content)
    return fetched


def roll_back(device: DeviceStore) -> str:
    """Exchanges the current and the previous bundle. Returns a line for the user. Raises BadModel."""
    with device.changing():
        state = device.state()
        if state.previous is None:
            raise BadModel("the device has no previous bundle")
        bundle = device.bundle(state.previous)
        result = bundle.test()
        device.activate(DeviceState(state.previous, state.current, went_back=True))
        return f"went back to {bundle.manifest.bundle} ({bundle.manifest.model}): {result}"
