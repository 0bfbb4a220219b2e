"""Plugins of TensorRT, from libraries of the user's own."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from trtq.errors import UsageError


def load_plugins(trt: Any, logger: Any, paths: Sequence[str]) -> None:
    """Registers the plugins of libraries, before anything is parsed or deserialized.

    A library registers its plugins while it is loaded, as the macro REGISTER_TENSORRT_PLUGIN does, or gives
    them to who asks for them by `getCreators` or `getPluginCreators`.

    Raises:
        UsageError: A library cannot be loaded.
    """
    if paths:
        trt.init_libnvinfer_plugins(logger, "")
    for path in paths:
        try:
            library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise UsageError(f"the plugins of {path} cannot be loaded: {error}") from error
        if any(hasattr(library, name) for name in ("getCreators", "getPluginCreators")):
            trt.get_plugin_registry().load_library(path)
