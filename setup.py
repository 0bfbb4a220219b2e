"""The compiled part; all else is in pyproject.toml, where extensions are still experimental."""

from setuptools import Extension, setup

kernel = Extension(
    "trtq.calibrators.kernel_c",
    ["src/trtq/calibrators/kernel.c"],
    extra_compile_args=["-O3"],
    optional=True,  # without a compiler the installation goes on, and numpy counts, some seven times slower
)
setup(ext_modules=[kernel])
