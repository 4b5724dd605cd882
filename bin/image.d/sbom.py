"""Bill of materials of an image, in CycloneDX: Debian packages, wheels, the server and its models, and files for browsers."""

import json
from collections.abc import Iterator
from datetime import datetime
from email.parser import BytesHeaderParser
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from archive import Image
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL


def text(tag: str, image: Image) -> str:
    """Returns the document. It is the same for the same image, so its time and its number come from the image."""
    labels = image.config["config"]["Labels"]
    name, _, version = tag.partition(":")
    bom = Bom(
        components=[*debian(image), *wheels(image), *browsers(image), *own(image, labels)],
        serial_number=uuid5(NAMESPACE_URL, image.id),
    )
    bom.metadata.timestamp = datetime.fromisoformat(image.config["created"])
    bom.metadata.component = Component(name=name, version=version, type=ComponentType.CONTAINER, bom_ref="image")
    bom.metadata.properties.add(Property(name="image.id", value=image.id))
    bom.register_dependency(bom.metadata.component, bom.components)
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def debian(image: Image) -> Iterator[Component]:
    for name, version, architecture in debian_packages(image):
        url = PackageURL("deb", "debian", name, version, {"arch": architecture, "distro": "debian-13"})
        yield Component(name=name, version=version, purl=url, bom_ref=str(url), type=ComponentType.LIBRARY)


def debian_packages(image: Image) -> Iterator[tuple[str, str, str]]:
    """Yields name, version, and architecture of each package, from the files for scanners."""
    for file in image.files:
        if file.path.startswith("var/lib/dpkg/status.d/"):
            fields = BytesHeaderParser().parsebytes(file.content)
            yield fields["Package"], fields["Version"], fields["Architecture"]


def wheels(image: Image) -> Iterator[Component]:
    for name, version in python_packages(image):
        url = PackageURL("pypi", None, name.lower(), version)
        yield Component(name=name, version=version, purl=url, bom_ref=str(url), type=ComponentType.LIBRARY)


def python_packages(image: Image) -> Iterator[tuple[str, str]]:
    for file in image.files:
        if file.path.endswith(".dist-info/METADATA"):
            fields = BytesHeaderParser().parsebytes(file.content)
            yield fields["Name"], fields["Version"]


def browsers(image: Image) -> Iterator[Component]:
    """Yields the npm packages in the bundle for devices."""
    for file in image.files:
        if file.path == "edge/manifest.json":
            version = json.loads(file.content)["minimum"]["onnxruntime-web"]
            url = PackageURL("npm", None, "onnxruntime-web", version)
            yield Component(name="onnxruntime-web", version=version, purl=url, bom_ref=str(url), type=ComponentType.LIBRARY)


def own(image: Image, labels: dict[str, str]) -> Iterator[Component]:
    version = labels["org.opencontainers.image.version"]
    commit = Property(name="revision", value=labels["org.opencontainers.image.revision"])
    yield Component(name="iris_wsgi", version=version, type=ComponentType.APPLICATION, bom_ref="iris_wsgi", properties=[commit])
    for path, golden in models(image):
        digest = HashType(alg=HashAlgorithm.SHA_256, content=golden["files"][golden["model"]])
        yield Component(name=golden["model"], type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref=path, hashes=[digest])


def models(image: Image) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the folder of each model, and its golden.json."""
    for file in image.files:
        folder, _, name = file.path.rpartition("/")
        if name == "golden.json":
            yield folder, json.loads(file.content)
