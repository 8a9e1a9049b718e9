"""The server against its own OpenAPI document: requests made from it by schemathesis, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from conftest import listened, tiny

pytestmark = pytest.mark.slow

steady = settings(
    max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with listened({"classes": tiny("unet")}, upload=1.0, pixels=0.1) as found:
        yield found


def test_every_route_answers_as_its_document_says(address: str) -> None:
    """Sound and unsound requests: no fault of the server, no status, type or body that the document does not tell.

    What is a text to a schema need not be a photo: that good data is taken is tested elsewhere.
    """
    operations = [each.ok() for each in schemathesis.openapi.from_url(f"{address}/openapi.json").get_all_operations()]
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
        )
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance])

        check()
    assert len(operations) == 14


def test_the_document_has_every_route(address: str) -> None:
    paths = httpx.get(f"{address}/openapi.json", timeout=60).json()["paths"]
    assert set(paths) == {
        "/", "/models/{name}", "/v1/panoptic", "/v1/models", "/v1/looks", "/v1/looks/{look}/segments",
        "/v1/looks/{look}/files", "/v1/truth", "/predict", "/setup", "/health", "/webhook", "/healthz", "/metrics",
    }  # fmt: skip
