"""One stage, one module: `python -m tasks.<verb>.<variant>`, started by DVC."""

from ajuste.core import arithmetic

arithmetic.pin()  # before any library is imported: they read the environment once
