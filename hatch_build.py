"""Build hook: wheels made on Linux x86-64 carry compiled CPU kernels and quantizers, so that they need no compiler."""

from __future__ import annotations

import importlib
import platform
import re
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Only glibc is needed of the system, symbols do not meet those of MLX's libraries, and parts of libstdc++ that are not
# used ask for no newer glibc.
STATIC = ("-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL,--gc-sections", "-s")


class PrebuiltKernels(BuildHookInterface):  # type: ignore[type-arg]
    """Adds a library for each level of PREBUILT, and the tag of the oldest glibc that they run with."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile into a temporary folder, from which hatchling takes the files; a checkout compiles for itself."""
        if version == "editable":
            return
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            self.app.display_info("no prebuilt CPU kernels: this is not Linux on x86-64")
            return
        self._folder = tempfile.TemporaryDirectory()
        try:
            libraries = self._compile(Path(self._folder.name))
        except OSError as error:
            self.app.display_warning(f"no prebuilt CPU kernels: {error}")
            return
        for path in libraries:
            where = f"mlx_ferrum/kernels/{path.parent.name}/prebuilt/{path.name}"
            build_data["force_include"][str(path)] = where
        minor = max(map(_glibc_minor, libraries))
        build_data["tag"] = f"py3-none-manylinux_2_{minor}_x86_64"
        build_data["pure_python"] = False

    def _compile(self, folder: Path) -> list[Path]:
        """Compile each folder's C++ for each level, into folders of the same names.

        Raises BuildError, an OSError, if there is no compiler or it fails.
        """
        sys.path.insert(0, self.root)  # the package itself needs MLX
        try:
            build = importlib.import_module("kernels.cpu.build")
        finally:
            sys.path.remove(self.root)
        compiler = build.find_compiler()
        paths = []
        for (kind, what), level in product(build.KINDS.items(), build.PREBUILT):
            self.app.display_info(f"compiling {what} for {level}")
            source = Path(self.root) / "kernels" / kind
            path = folder / kind / build.prebuilt_name(level, source)
            path.parent.mkdir(exist_ok=True)
            build.compile_to(path, compiler, build.flags(level), folder=source, link=STATIC)
            paths.append(path)
        return paths


def _glibc_minor(library: Path) -> int:
    """The N of the newest symbol version GLIBC_2.N that a library needs."""
    versions = re.findall(rb"GLIBC_2\.(\d+)[.\d]*\0", library.read_bytes())
    return max(map(int, versions))
