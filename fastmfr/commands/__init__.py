"""The commands of python -m fastmfr: each reads its arguments, calls the library and prints what came of it."""
