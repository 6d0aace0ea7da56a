"""Terms for tests of glossaries."""

from __future__ import annotations

from typing import Any

from sae_runtime.glossary import Term

CHURN = {"meaning": "customers who leave", "otherwise": "stirring milk"}
LEAD = {"meaning": "a likely customer", "otherwise": ["a grey metal", "the front place"]}


def term(name: str = "churn", **fields: Any) -> Term:
    return Term.model_validate({"term": name, **CHURN, **fields})
