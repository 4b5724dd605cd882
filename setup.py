"""Packages of the wheel: iris_wsgi, and the data files of the folder model as iris_wsgi.iris_model. setup.cfg has the rest."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

MODEL = "iris_wsgi.iris_model"


class BuildPackages(build_py):
    """Leaves out the scripts that train the model, which are in the same folder."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        return [] if package == MODEL else super().find_package_modules(package, package_dir)


setup(
    packages=[*find_packages(include=["iris_wsgi*"]), MODEL], package_dir={MODEL: "model"}, cmdclass={"build_py": BuildPackages}
)
