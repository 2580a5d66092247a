"""Which fixtures have the tests of all packages? Those of the conformance kit."""

pytest_plugins = ["flujo_conformance.pytest_plugin"]
