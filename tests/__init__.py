"""A package: one of the data packages installs a `tests` of its own, which started processes must not find instead."""
