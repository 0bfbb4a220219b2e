"""The compiled part; all else is in pyproject.toml, where extensions are still experimental.

The kernel is a shared library without Python in it: calibrators/kernel.py loads it with ctypes. So its file
has no suffix of a Python version, and one wheel of a platform serves them all. With TRTQ_PURE=1 there is no
kernel, and the wheel is for every platform: numpy counts.
"""

import os

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNEL = Extension(
    "trtq.calibrators.kernel_c",
    ["src/trtq/calibrators/kernel.c"],
    extra_compile_args=["-O3", "-ffp-contract=off"],  # numpy rounds each product
    optional=True,  # without a compiler the installation goes on, and numpy does it, some seven times slower
)


class BuildLibrary(build_ext):
    """Builds kernel_c.so."""

    def get_ext_filename(self, fullname: str) -> str:
        """Returns the path of a library, without the suffix of a Python version."""
        return os.path.join(*fullname.split(".")) + ".so"  # noqa: PTH118 - setuptools wants a str


class AnyPythonWheel(bdist_wheel):
    """Tags a wheel with its platform alone."""

    def get_tag(self) -> tuple[str, str, str]:
        """Returns py3-none-PLATFORM, or py3-none-any where there is no kernel."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[] if os.environ.get("TRTQ_PURE") == "1" else [KERNEL],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPythonWheel},
)
