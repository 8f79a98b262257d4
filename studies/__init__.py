"""Sweeps and questions beside the default run, each with a dvc.yaml of its own: `ajuste study NAME`."""

from ajuste.core import arithmetic

arithmetic.pin()  # as for tasks/
