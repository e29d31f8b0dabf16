from tests.tasks.conftest import folders, pictures, sets, sources  # noqa: F401
