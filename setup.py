"""The compiled part; all else is in pyproject.toml, where extensions are still experimental.

The page of a build lays graphs out by a script of npm, which is fetched here, as the repository holds none
of others. Without npm or the network the installation goes on, and the page draws no graph.

The kernel is a shared library without Python in it: calibrators/kernel.py loads it with ctypes. So its file
has no suffix of a Python version, and one wheel of a platform serves them all. With TRTQ_PURE=1 there is no
kernel, and the wheel is for every platform: numpy counts.
"""

import base64
import hashlib
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

LAYOUT = Path("src/trtq/pipeline/deliver/html/dagre.min.js")
LAYOUT_PACKAGE = "@dagrejs/dagre@3.1.3"
LAYOUT_SHA512 = "X4aUTwOReZvthaZWOVHqlJ52/ZdhZFEM4+Lh/uR4XooUSLE6p71bcy7MPGzYnNUcNh+nj+i/qJQpCMIdQnSmrg=="

KERNEL = Extension(
    "trtq.calibrators.kernel_c",
    [f"src/trtq/calibrators/{name}.c" for name in ("kernel", "blocks", "clips")],
    depends=["src/trtq/calibrators/values.h"],
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


def fetch_layout() -> None:
    """Puts dagre, below its license, beside the page's own script."""
    if LAYOUT.exists():
        return
    try:
        LAYOUT.write_text(read_layout(), encoding="utf-8")
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        print(f"the page of a build will draw no graph: {LAYOUT_PACKAGE} could not be fetched: {error}")


def read_layout() -> str:
    """Returns the script of the package, and its license as a comment."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", LAYOUT_PACKAGE, "--pack-destination", folder, "--fetch-retries=0"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        (path,) = Path(folder).glob("*.tgz")
        if base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode() != LAYOUT_SHA512:
            raise ValueError("its SHA-512 is another")
        with tarfile.open(path) as package:
            names = ("package/LICENSE", "package/dist/dagre.min.js")
            for name in names:
                package.extract(name, folder)
        license_text, script = ((Path(folder) / name).read_text(encoding="utf-8") for name in names)
    code = [line for line in script.splitlines() if not line.startswith("//# sourceMappingURL")]
    return "\n".join(["/*", license_text.strip(), "*/", *code, ""])


class BuildPackage(build_py):
    """Fetches the script first."""

    def run(self) -> None:
        """Copies the modules and their data."""
        fetch_layout()
        super().run()


class SourceArchive(sdist):
    """Fetches the script first, so that whoever builds of it needs no npm."""

    def run(self) -> None:
        """Writes the archive."""
        fetch_layout()
        super().run()


setup(
    ext_modules=[] if os.environ.get("TRTQ_PURE") == "1" else [KERNEL],
    cmdclass={
        "build_py": BuildPackage,
        "build_ext": BuildLibrary,
        "bdist_wheel": AnyPythonWheel,
        "sdist": SourceArchive,
    },
)
