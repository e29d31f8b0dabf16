"""Makes transformers know the models, the processor and two pipelines, once transformers is there.

transformers and torch take seconds to import, and much that is done with this package (the command line's help, a look
at its version) needs neither. So `import vlmo` imports neither: it waits until somebody has imported transformers.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_REGISTERED = threading.Event()


def register() -> None:
    """Enters the classes into transformers' Auto classes and pipelines. Calling it again changes nothing."""
    if _REGISTERED.is_set():
        return
    # Before transformers is imported below, which would otherwise lead here again.
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Watch)]
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForMaskedImageModeling,
        AutoModelForMaskedLM,
        AutoModelForPreTraining,
        AutoModelForSemanticSegmentation,
        AutoModelForVisualQuestionAnswering,
        AutoModelForZeroShotImageClassification,
        AutoProcessor,
    )

    from vlmo import model
    from vlmo.integrations import pipelines
    from vlmo.processing import VLMoProcessor

    config = model.VLMoConfig
    AutoConfig.register(config.model_type, config)
    for auto, own in (
        (AutoModel, model.VLMoModel),
        (AutoModelForPreTraining, model.VLMoForPreTraining),
        (AutoModelForMaskedImageModeling, model.VLMoForMaskedImageModeling),
        (AutoModelForMaskedLM, model.VLMoForMaskedLM),
        (AutoModelForZeroShotImageClassification, model.VLMoForImageTextRetrieval),
        (AutoModelForVisualQuestionAnswering, model.VLMoForVisualQuestionAnswering),
        (AutoModelForImageClassification, model.VLMoForImageClassification),
        (AutoModelForSemanticSegmentation, model.VLMoForSemanticSegmentation),
        (AutoProcessor, VLMoProcessor),
    ):
        auto.register(config, own)
    pipelines.register()
    _REGISTERED.set()


def register_when_transformers_is_imported() -> None:
    """Registers now if it has been imported, else as soon as it will have been."""
    if "transformers" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Watch())


class _Watch:
    """Finds modules as all other finders do, and registers after transformers.

    Most of our own modules import transformers. While one of them is on its way, its classes are not there yet, so the
    end of the outermost import counts.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._lock = threading.Lock()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification that the other finders give, with a loader that tells when it has done its work."""
        if name != "transformers" and not name.startswith("vlmo."):
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                self._follow(spec)
                return spec
        return None

    def _follow(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        if loader is None:
            return
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            # Set on this one loader, so that all else that a loader can do (sources, resources) stays.
            del loader.exec_module
            with self._lock:
                self._depth += 1
            try:
                execute(module)
            finally:
                with self._lock:
                    self._depth -= 1
            if self._depth == 0 and "transformers" in sys.modules:
                register()

        loader.exec_module = exec_module
