"""Build entry point; the metadata stands in pyproject.toml.

``HYPERKERN_BUILD_CUDA=1`` compiles the CUDA C++ backend (no GPU has to be there; ``TORCH_CUDA_ARCH_LIST`` is
respected), ``HYPERKERN_BUILD_EMULATOR=1`` the same kernels for the CPU, for tests. Otherwise the wheel is pure Python.
"""

import os
import re
import sys
from pathlib import Path

from setuptools import setup

os.chdir(Path(__file__).parent)
CSRC = Path("csrc")
sys.path.insert(0, str(CSRC))
from build_backend import find_toolkit, readme  # noqa: E402, where pip finds it by itself

ARCHITECTURES = "8.0+PTX;9.0a"
# The oldest PyTorch whose stable ABI is used: a build made with any later one runs on all of them.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
CXX = ["-Wall", "-fvisibility=hidden", "-g0"]  # debugging information would be a fifth of the library
NAMESPACE = "-DHYPERKERN_NAMESPACE=hyperkern_cuda"


def sources(*patterns: str) -> list[str]:
    return [str(path) for pattern in patterns for path in sorted(CSRC.glob(pattern))]


COMMON = {"py_limited_api": True, "depends": sources("*.h", "*.cuh", "emulator/*.h", "instances/*.cu")}


def cuda_extension():
    find_toolkit()
    from torch.utils.cpp_extension import CUDAExtension, _get_cuda_arch_flags

    # wgmma and the TMA unit are features of 9.0a: plain 9.0, as in many images' settings, would leave them out.
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES
    os.environ["TORCH_CUDA_ARCH_LIST"] = re.sub(r"(?<![\d.])9\.0(?![a\d])|Hopper", "9.0a", wanted)
    built = re.findall(r"code=(sm|compute)_(\d+)(a?)", " ".join(_get_cuda_arch_flags()))
    codes = "".join(f"_{number}{2 if only else int(kind == 'compute')}" for kind, number, only in built)  # 801: PTX
    flags = ["-O3", "-std=c++17", "-DUSE_CUDA", TORCH_TARGET, NAMESPACE, f"-DHYPERKERN_ARCHITECTURES={codes}"]
    extension = CUDAExtension(
        "hyperkern.backends.cuda.kernels",
        sources("*.cpp", "*.cu", "instances/*.cu"),
        **COMMON,
        extra_compile_args={"cxx": [*flags, *CXX], "nvcc": flags},
    )
    # Only what the stable ABI needs: no libc10, no Python, and a runtime of our own.
    extension.library_dirs.append(os.path.join(os.environ["CUDA_HOME"], "lib"))
    extension.libraries = ["torch_cpu", "torch_cuda", "cudart_static", "dl", "rt", "pthread"]
    return extension


def emulator_extension():
    from torch.utils.cpp_extension import CppExtension

    flags = ["-O2", "-std=c++17", "-DHYPERKERN_EMULATED", TORCH_TARGET, f"{NAMESPACE}_emulated"]
    extension = CppExtension(
        "hyperkern.backends.cuda.emulator",
        sources("*.cpp", "emulator/*.cpp"),
        **COMMON,
        extra_compile_args=[*flags, *CXX, "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"],
    )
    extension.libraries = ["torch_cpu"]
    return extension


makers = {"HYPERKERN_BUILD_CUDA": cuda_extension, "HYPERKERN_BUILD_EMULATOR": emulator_extension}
options = {}
if extensions := [make() for name, make in makers.items() if os.environ.get(name, "0") not in ("", "0")]:
    from torch.utils.cpp_extension import BuildExtension

    options["cmdclass"] = {"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)}
setup(ext_modules=extensions, long_description=readme(), long_description_content_type="text/markdown", **options)
