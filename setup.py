"""Puts the top-level folders that apicost needs at run time into the wheel, under apicost/data/.

Everything else is declared in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CARRIED = {"bpf": "bpf", "apisix": "apisix", "specs": "specs"}


class BuildWithData(build_py):
    def run(self):
        super().run()
        if self.editable_mode:
            return  # a checkout is read in place
        for source, target in CARRIED.items():
            destination = Path(self.build_lib) / "apicost" / "data" / target
            shutil.rmtree(destination, ignore_errors=True)
            shutil.copytree(Path(__file__).parent / source, destination)


setup(cmdclass={"build_py": BuildWithData})
