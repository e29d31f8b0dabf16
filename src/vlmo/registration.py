"""Registration with transformers, with sentence-transformers, and of the converter of published files.

torch and transformers take seconds to import, and much of this package needs neither. `import vlmo` therefore imports
neither: a hook registers the classes once something has imported the part of transformers that looks them up.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from vlmo.released import taking_names
from vlmo.released.published import NamedModel, register_converter

_REGISTER = {
    "transformers.models.auto.configuration_auto": "vlmo.integrations.auto",
    "transformers.models.auto.processing_auto": "vlmo.integrations.pipelines",
    "transformers.pipelines": "vlmo.integrations.pipelines",
    "sentence_transformers": "vlmo.integrations.sentence_transformers",
}
"""Modules of theirs that look up classes, and those of ours whose `register` adds to them."""
_NAMED = {
    "configuration_auto": "AutoConfig",
    "processing_auto": "AutoProcessor",
    "tokenization_auto": "AutoTokenizer",
    "image_processing_auto": "AutoImageProcessor",
    "video_processing_auto": "AutoVideoProcessor",
    "feature_extraction_auto": "AutoFeatureExtractor",
}
"""Modules of Auto classes without models, whose `from_pretrained` takes names of models too."""
_registered: set[str] = set()
_importing: list[str] = []  # modules that the hook follows


def register() -> None:
    """Register the converter and what transformers can already look up; the rest after the import of its part."""
    sys.meta_path.insert(0, _Hook())
    _register()
    register_converter(_convert)


def _convert(model: NamedModel, folder: Path, file: Path, vocabulary: Path | None = None) -> None:
    """Write the model folder of a published file."""
    from vlmo.checkpoints.importing import import_checkpoint
    from vlmo.tasks import usage_of

    import_checkpoint(
        file,
        folder,
        kind=model.layout,
        vocabulary=vocabulary,
        licence=model.licence.lower(),
        address=model.address,
        usage_of=usage_of,
    )


def _register() -> None:
    for theirs, ours in _REGISTER.items():
        if theirs in sys.modules and ours not in _registered:
            _registered.add(ours)
            try:
                importlib.import_module(ours).register()
            except (AttributeError, ImportError) as error:  # a release that has not what we adapt to
                warnings.warn(f"models of vlmo are not known there: {error}", stacklevel=2)
    for module, name in _NAMED.items():
        found = sys.modules.get(f"transformers.models.auto.{module}")
        if found is not None and name not in _registered:
            _registered.add(name)
            auto: Any = getattr(found, name)
            auto.from_pretrained = classmethod(taking_names(auto.from_pretrained.__func__))


class _Hook(MetaPathFinder):
    """Registers after imports from transformers and sentence-transformers.

    Where a module of this package or of transformers imports such a part, not all classes exist yet: the end of the
    outermost import counts.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the usual specification of a module of theirs or ours; its loader ends in `_register`."""
        is_theirs = fullname.startswith(("transformers", "sentence_transformers", "vlmo."))
        spec = PathFinder.find_spec(fullname, path, target) if is_theirs else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            _importing.append(fullname)
            try:
                execute(module)
            finally:
                _importing.remove(fullname)
            if not _importing:
                _register()

        spec.loader.exec_module = exec_module
        return spec
