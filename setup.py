"""Puts the folder configs/ into the package, as cifar_jax/configs; setup.cfg has the rest."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["cifar_jax", "cifar_jax.*"]), "cifar_jax.configs"],
    package_dir={"cifar_jax.configs": "configs"},
)
