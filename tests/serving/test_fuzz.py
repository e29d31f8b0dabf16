"""The API against what its own description allows and forbids, at random but always the same."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis import GenerationMode, checks

from vlmo.serving.app import create_app

EXAMPLES = 12
"""Requests to each route, by the description and against it."""
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
ROUTES = [
    ("/v1/search", "POST"),
    ("/v1/similar", "POST"),
    ("/v1/vqa", "POST"),
    ("/v1/embeddings", "POST"),
    ("/v1/rerank", "POST"),
    ("/v2/rerank", "POST"),
    ("/v1/images/{id}", "GET"),
    ("/v1/thumbnails/{id}", "GET"),
    ("/v1/about", "GET"),
    ("/v1/models", "GET"),
    ("/healthz", "GET"),
    ("/metrics", "GET"),
]


@pytest.fixture(scope="module")
def description(parts) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(parts))


def test_every_route_is_tried(description) -> None:
    found = [operation.ok() for operation in description.get_all_operations()]
    assert {(operation.path, operation.method.upper()) for operation in found} == set(ROUTES)


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        *((path, method, GenerationMode.POSITIVE) for path, method in ROUTES),
        # What has no body cannot be wrong: any text may be an id.
        *((path, method, GenerationMode.NEGATIVE) for path, method in ROUTES if method == "POST"),
    ],
)
def test_api_keeps_to_its_description(description, path, method, mode) -> None:
    cases = description[path][method].as_strategy(generation_mode=mode)

    @hypothesis.settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @hypothesis.given(case=cases)
    def keeps(case) -> None:
        case.call_and_validate(checks=CHECKS)

    keeps()
