"""The API against what its own description allows and forbids, at random but always the same."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis import checks

from vlmo.serving.app import create_app

EXAMPLES = 12
"""Of each route; more find nothing new, as `--hypothesis-seed` with thousands of them has shown."""
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def description(parts):
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(parts))


schema = schemathesis.pytest.from_fixture("description")


@schema.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
def test_api_keeps_to_its_description(case) -> None:
    case.call_and_validate(checks=CHECKS)
