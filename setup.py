"""Packages, the C sources among them, and the cffi extension; everything else is in pyproject.toml."""

from setuptools import setup

setup(
    packages=[
        "kmesh",
        "kmesh.cluster",
        "kmesh.cluster.kubernetes",
        "kmesh.kmeshctl",
        "kmesh.launcher",
        "kmesh.telling",
        "kmesh_bpf",
        "kmesh_bpf.cdef",
        "kmesh_bpf.core",
        "kmesh_bpf.csrc",
        "kmesh_bpf.csrc.include",
        "kmesh_bpf.kernel",
    ],
    package_dir={"kmesh": "python/kmesh", "kmesh_bpf.csrc": "bpf"},
    package_data={
        "kmesh_bpf": ["py.typed"],
        "kmesh_bpf.cdef": ["*.h"],
        "kmesh_bpf.csrc": ["*.c"],
        "kmesh_bpf.csrc.include": ["*.h"],
        "kmesh": ["py.typed"],
        "kmesh.kmeshctl": ["page/*"],
    },
    cffi_modules=["kmesh_bpf/_build.py:ffi"],
)
