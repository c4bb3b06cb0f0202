# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: a wheel has the bundles, as data of the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["tools", "tools.*"]), "tools._bundles"],
    package_dir={"tools._bundles": "bundles"},
    package_data={
        "tools": ["datasets/*.yaml", "datasets/demo/**/*", "datasets/small/**/*", "linting/*.json", "labelling/*.txt"],
        "tools._bundles": [
            *(f"**/*.{suffix}" for suffix in ("yaml", "yml", "json", "md", "conf", "txt")),
            "*/LICENSE",
            "*/models/*.safetensors",
        ],
    },
    # fetched weights and results of the checkout
    exclude_package_data={"tools._bundles": ["*/models/dino*", "*/models/beit*", "*/eval/**"]},
)
