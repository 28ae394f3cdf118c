"""What pyproject.toml cannot say: the explicit package list and how the native module is built."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

# tests/unit/test_packaging.py compares this list with the tree.
PACKAGES = [
    "exllama",
    "exllama.architectures",
    "exllama.architectures.common",
    "exllama.cache",
    "exllama.cli",
    "exllama.cli.chat",
    "exllama.conversion",
    "exllama.devices",
    "exllama.engine",
    "exllama.formats",
    "exllama.generator",
    "exllama.generator.constraints",
    "exllama.generator.drafting",
    "exllama.generator.sampling",
    "exllama.layers",
    "exllama.loader",
    "exllama.ops",
    "exllama.tokenizer",
    "exllama_ext",
]


def native_build() -> ModuleType:
    """exllama_ext/build.py, loaded by path, since its package looks for the module that is still to be built."""
    sys.path.insert(0, str(ROOT))
    spec = importlib.util.spec_from_file_location("exllama_native_build", ROOT / "exllama_ext" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildNative(build_ext):
    """Hands `exllama_ext._C` to the project's own build, the one list of sources and flags."""

    def build_extension(self, ext: Extension) -> None:
        folder = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        folder.mkdir(parents=True, exist_ok=True)
        native_build().build_cpu(folder)


setup(
    packages=PACKAGES,
    package_dir={"exllama.conversion": "conversion"},
    package_data={"exllama": ["py.typed"], "exllama.conversion": ["texts/*"], "exllama_ext": ["*.pyi"]},
    include_package_data=False,
    ext_modules=[Extension("exllama_ext._C", sources=[])],
    cmdclass={"build_ext": BuildNative},
    zip_safe=False,
)
