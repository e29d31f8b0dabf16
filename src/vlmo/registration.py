"""Registration of models, processor and pipelines with transformers.

torch and transformers take seconds to import, and much of this package needs neither. `import vlmo` therefore imports
neither: a hook registers the classes once something has imported transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_importing: list[str] = []  # modules that the hook follows


def register() -> None:
    """Register the classes with transformers' Auto classes and pipelines. Calling it again changes nothing."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Hook)]
    from vlmo.integrations import pipelines

    pipelines.register()


def register_once_transformers_is_imported() -> None:
    """Register now if transformers has been imported, otherwise right after its import."""
    if "transformers" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Hook())


class _Hook(MetaPathFinder):
    """Registers after the import of transformers.

    Where a module of this package imports transformers, its own classes do not exist yet: the end of the outermost
    import counts.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the usual specification of transformers and of our modules, with a loader that ends in `register`."""
        ours = fullname == "transformers" or fullname.startswith("vlmo.")
        spec = PathFinder.find_spec(fullname, path, target) if ours else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            _importing.append(fullname)
            try:
                execute(module)
            finally:
                _importing.remove(fullname)
            if not _importing and "transformers" in sys.modules and self in sys.meta_path:
                register()

        spec.loader.exec_module = exec_module
        return spec
