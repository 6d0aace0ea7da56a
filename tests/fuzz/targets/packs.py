"""A concept file is a ConceptPack whose contexts mark a form, which survives being written again; else PackError."""

from __future__ import annotations

from typing import Any

import yaml

from sae_runtime.catalog.packs import ConceptPack, load_concept
from sae_runtime.errors import PackError

from ..files import scratch
from ..yaml_files import CASES as CASES
from ..yaml_files import Case, content


def _sense(word: str) -> dict[str, Any]:
    contexts = [f"{word} {number} [tip]" for number in range(16)]
    return {
        "gloss": f"the {word}", "note": f'"{{mention}}" means {word} here.', "domains": [word], "cues": [f"{word}s"],
        "contexts": contexts[:12], "held_out": contexts[12:],
    }  # fmt: skip


_WHOLE = {"concept": "tip", "forms": ["tip", "Tips"], "senses": {"advice": _sense("hint"), "end": _sense("point")}}


def check(case: Case) -> None:
    """See the module."""
    path = scratch() / "concept.yaml"
    path.write_bytes(content(_WHOLE, case))
    try:
        pack = load_concept(path)
    except PackError as error:
        assert str(path) in error.message and error.remedy, "an error that names no file"
        return
    forms = {form.lower() for form in pack.forms}
    for sense in pack.senses.values():
        for held_out in (False, True):
            for context in sense.labelled(held_out=held_out):
                assert context.mention.lower() in forms, "a context that marks no form"
    path.write_text(yaml.safe_dump(pack.model_dump(), allow_unicode=True), "utf-8", "surrogatepass")
    assert load_concept(path) == pack, "written again it is another pack"
    assert ConceptPack.model_validate(pack.model_dump()) == pack
