"""Builds the one compiled extension, fastmfr._native, by CMake; everything else is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Hands an extension to CMake, which knows its sources; setuptools only says where the result goes."""

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / ext.name
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        for command in (configure, ["cmake", "--build", str(build)]):
            subprocess.run(command, check=True)


setup(
    packages=[
        *find_packages(include=["fastmfr*"]),
        "fastmfr.recipes",
        *("fastmfr.kernels" + part for part in ("", ".batchnorm_prelu", ".cos_lse")),
    ],
    ext_modules=[Extension("fastmfr._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
