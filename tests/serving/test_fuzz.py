from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis import GenerationMode, checks

from vlmo.serving.app import create_app
from vlmo.serving.parts import Parts

EXAMPLES = 12  # requests to each route, by the description and against it
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
ROUTES = [(path, *route) for path, route in create_app(Parts()).openapi()["paths"].items()]


@pytest.fixture(scope="module")
def description(parts) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(parts))


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        *((path, method, GenerationMode.POSITIVE) for path, method in ROUTES),
        # What has no body cannot be wrong: any text may be an id.
        *((path, method, GenerationMode.NEGATIVE) for path, method in ROUTES if method == "post"),
    ],
)
def test_api_keeps_to_its_description(description, path, method, mode) -> None:
    cases = description[path][method].as_strategy(generation_mode=mode)

    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=cases)
    def keeps(case) -> None:
        case.call_and_validate(checks=CHECKS)

    keeps()
