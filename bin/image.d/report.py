"""Table of the parts of an image."""

from archive import Image

PACKAGES = "usr/local/lib/python3.13/dist-packages/"
# The first match counts.
PARTS = (
    ("licences", ("usr/share/doc/", "/licenses/", "LICENSE", "ThirdPartyNotices")),
    ("onnxruntime", (PACKAGES + "onnxruntime",)),
    ("numpy", (PACKAGES + "numpy", "libblas64")),
    ("waitress", (PACKAGES + "waitress",)),
    ("iris_wsgi", (PACKAGES + "iris_wsgi",)),
    ("the API page", (PACKAGES + "flask_swagger_ui",)),
    ("for other roles", (PACKAGES,)),
    ("Python's interpreter", ("usr/bin/python",)),
    ("Python's standard library", ("usr/lib/python3.13/",)),
    ("C and C++ libraries", ("usr/lib/",)),
    ("the edge bundle", ("edge/",)),
    ("the models", ("model/",)),
    ("the rest", ("",)),
)


def text(tag: str, image: Image) -> str:
    """Returns a line per part, the largest first, and the sums. Sizes are in 10^6 bytes."""
    rows = sorted(parts(image).items(), key=lambda row: -row[1][0])
    lines = [f"{tag} {image.id}", f"{'':<28}{'MB':>8}{'files':>8}"]
    lines += [f"{name:<28}{size / 1e6:>8.2f}{count:>8}" for name, (size, count) in rows]
    lines.append(f"{'in all':<28}{image.bytes / 1e6:>8.2f}{len(image.files):>8}")
    lines.append(f"{'gzipped, as a registry has it':<28}{image.compressed / 1e6:>7.2f}")
    return "\n".join(lines)


def parts(image: Image) -> dict[str, tuple[int, int]]:
    """Returns bytes and number of files by part."""
    found: dict[str, tuple[int, int]] = {}
    for file in image.files:
        name = next(name for name, marks in PARTS if any(mark in file.path for mark in marks))
        size, count = found.get(name, (0, 0))
        found[name] = (size + file.size, count + 1)
    return found
