"""Contents of an image, read from the archive that docker, podman, and buildah write."""

import json
import tarfile
import tempfile
import zlib
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import container_engine

# Time of an image without the label below. A plain `docker build` does not set it.
EPOCH = "1970-01-01T00:00:00Z"
CREATED_LABEL = "org.opencontainers.image.created"


class File(NamedTuple):
    """File of the image: its size, and its content if the file describes an installed package or the model."""

    path: str
    size: int
    content: bytes


class Image(NamedTuple):
    """Image: its id, its configuration, its files, and its size, uncompressed and as a registry sends it."""

    id: str
    config: dict[str, Any]
    files: list[File]
    bytes: int
    compressed: int


def is_metadata(path: str) -> bool:
    """Returns whether the file describes a package or the model."""
    return path.startswith(("var/lib/dpkg/status.d/", "model/", "edge/model/", "edge/manifest.json")) or path.endswith(
        (".dist-info/METADATA", "os-release")
    )


def read(tool: str, tag: str) -> Image:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.tar"
        container_engine.save(tool, tag, file)
        with tarfile.open(file) as archive:
            manifest = json.loads(content(archive, "manifest.json"))[0]
            config = content(archive, manifest["Config"])
            files: dict[str, File] = {}
            compressed = 0
            for layer in manifest["Layers"]:
                compressed += compressed_size(archive, layer)
                files |= layer_files(archive, layer)
    found = [files[path] for path in sorted(files)]
    return Image(f"sha256:{sha256(config).hexdigest()}", json.loads(config), found, sum(f.size for f in found), compressed)


def normalize(tool: str, tag: str) -> str:
    """Replaces the configuration of the image by one without the details of the build, and returns the new id.

    Builders note there the names of their containers and of what they built before, which no two builds share.
    """
    with tempfile.TemporaryDirectory() as folder:
        normalized = Path(folder) / "normalized.tar"
        image_id = write_normalized(tool, tag, tag, normalized)
        container_engine.load(tool, normalized)
    return image_id


def write_normalized(tool: str, tag: str, name: str, file: Path) -> str:
    """Writes an archive of the image with the normalized configuration under another name, and returns the id of the image."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "built.tar"
        container_engine.save(tool, tag, built)
        with tarfile.open(built) as old, tarfile.open(file, "w") as new:
            manifest = json.loads(content(old, "manifest.json"))[0]
            new_config = runtime_config(json.loads(content(old, manifest["Config"])))
            layers = [f"{digest.removeprefix('sha256:')}.tar" for digest in new_config["rootfs"]["diff_ids"]]
            config = json.dumps(new_config, sort_keys=True).encode()
            for layer, source in zip(layers, manifest["Layers"], strict=True):
                add(new, layer, old.getmember(source).size, old.extractfile(source))
            digest = sha256(config).hexdigest()
            listed = json.dumps([{"Config": f"{digest}.json", "RepoTags": [name], "Layers": layers}]).encode()
            add(new, f"{digest}.json", len(config), BytesIO(config))
            add(new, "manifest.json", len(listed), BytesIO(listed))
    return f"sha256:{digest}"


def runtime_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a configuration that runs the image (the required fields of the OCI specification, and `config`).

    The image was created at the time in its label, that of the commit.
    """
    kept = ("Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels", "StopSignal", "User")
    created = (config["config"].get("Labels") or {}).get(CREATED_LABEL, EPOCH)
    history = [{"created": created, "created_by": "the Dockerfile"} for _ in config["rootfs"]["diff_ids"]]
    return {
        "architecture": config["architecture"],
        "os": config["os"],
        "created": created,
        "config": {key: config["config"][key] for key in kept if config["config"].get(key)},
        "rootfs": config["rootfs"],
        "history": history,
    }


def add(archive: tarfile.TarFile, name: str, size: int, content: IO[bytes] | None) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    archive.addfile(member, content)


def content(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    assert member is not None
    return member.read()


def layer_files(archive: tarfile.TarFile, name: str) -> dict[str, File]:
    found = {}
    with tarfile.open(fileobj=archive.extractfile(name)) as layer:
        for member in layer:
            path = member.name.removeprefix("./").removeprefix("/")
            if member.isreg():
                opened = layer.extractfile(member) if is_metadata(path) else None
                found[path] = File(path, member.size, opened.read() if opened else b"")
            elif not member.isdir():
                found[path] = File(path, 0, b"")
    return found


def compressed_size(archive: tarfile.TarFile, name: str) -> int:
    """Returns the size of a layer under gzip at its usual level, as in registries."""
    packer = zlib.compressobj(6, wbits=31)
    layer = archive.extractfile(name)
    assert layer is not None
    size = 0
    while piece := layer.read(1 << 20):
        size += len(packer.compress(piece))
    return size + len(packer.flush())
