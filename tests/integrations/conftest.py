"""What tests of pipelines share: a processor, a writer of model folders, and errors that transformers logs."""

import pytest
from tests.checkpoints.toy_folder import folder_writer, logged_errors, text_processor

from vlmo import VLMoProcessor


@pytest.fixture(scope="package")
def processor() -> VLMoProcessor:
    return text_processor()


@pytest.fixture
def make(processor, tmp_path):
    return folder_writer(tmp_path, processor)


@pytest.fixture
def errors():
    with logged_errors() as records:
        yield records
