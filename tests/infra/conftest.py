"""The Prefect harness of tests/flows, for the tests here that need a server and no more."""

from tests.flows.conftest import prefect_harness

__all__ = ["prefect_harness"]
