"""What the server imports that forks processes of tests, before it forks the first."""

import gc
import importlib

# Without what starts threads when it is imported, such as lancedb: a fork has none of them. Most of the time of its
# import goes into lance_namespace, which starts none.
_MODULES = """
    tests.forkserver pytest datasets pandas tensorboard.summary torch.distributed.fsdp torch.distributed.checkpoint
    torch._dynamo torchvision.transforms.v2 transformers.modeling_utils scipy.optimize fastapi uvicorn lance_namespace
    tyro vlmo.cli vlmo.evaluation vlmo.integrations.auto vlmo.processing.processor vlmo.run
"""

gc.disable()  # as in tests/conftest.py
for _name in _MODULES.split():
    importlib.import_module(_name)
importlib.import_module("PIL.Image").init()  # imports the formats
# makes all
importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("vlmo")
gc.freeze()
gc.enable()
