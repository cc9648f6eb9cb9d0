"""Computes the packages of the distribution: `sepwise` maps to several top-level folders.

`packages.find` ignores `package_dir` and would ship bare names (`passes`, `lowering`), so the mapping is
spelled here once: the import package `sepwise` lives in `scripts/sepwise`, and `sepwise.models`,
`sepwise.passes` and `sepwise.lowering` in the folders of that name.
"""

from pathlib import Path

from setuptools import setup

ROOTS = {
    "sepwise": "scripts/sepwise",
    "sepwise.models": "models",
    "sepwise.passes": "passes",
    "sepwise.lowering": "lowering",
}


def packages() -> list[str]:
    """Lists every package below the mapped folders by its import name.

    Returns:
        The dotted names, each a folder with an `__init__.py`.
    """
    found = set()
    for name, folder in ROOTS.items():
        for init in Path(folder).rglob("__init__.py"):
            inner = init.parent.relative_to(folder).parts
            found.add(".".join([name, *inner]))
    return sorted(found)


setup(packages=packages(), package_dir=ROOTS)
