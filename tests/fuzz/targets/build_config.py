"""A build configuration is a BuildConfig that survives being written again, or an InputError; so is any name of one."""

from __future__ import annotations

import yaml
from hypothesis import strategies as st

from sae_runtime.build.config import BuildConfig, load_config
from sae_runtime.errors import InputError

from ..files import scratch
from ..texts import texts
from ..yaml_files import CASES as YAML_CASES
from ..yaml_files import Case as YamlCase
from ..yaml_files import content

Case = tuple[str, YamlCase | None]

CASES: st.SearchStrategy[Case] = st.one_of(
    st.tuples(st.just(""), YAML_CASES),
    st.tuples(st.just(""), YAML_CASES),
    st.tuples(texts(2), st.none()),
)
_WHOLE = {
    "model": "tiny", "layer": 1, "seed": 3, "dtype": "auto", "sae": None,
    "corpus": {
        "root": "corpus",
        "sources": [
            {"kind": "text", "name": "novels", "licence": "PD", "paths": ["novels/*.txt"], "weight": 0.5},
            {"kind": "records", "name": "tasks", "licence": "MIT", "paths": ["*.json"], "user": "{q}", "assistant": "{a}"},
            {"kind": "dataset", "name": "hub", "licence": "MIT", "path": "a/b", "user": "{q}", "assistant": "{a}"},
        ],
        "train_tokens": 1000,
    },
    "train": {"width": 64, "k": 4, "nested_widths": [16, 32], "learning_rate": 4e-4},
    "concepts": {"packs": ["homographs"]},
}  # fmt: skip


def check(case: Case) -> None:
    """See the module."""
    name, yaml_case = case
    path = scratch() / "build.yaml"
    if yaml_case is not None:
        path.write_bytes(content(_WHOLE, yaml_case))
        name = str(path)
    try:
        config = load_config(name)
    except InputError as error:
        assert error.message and error.remedy
        return
    assert yaml_case is not None, "a configuration out of nowhere"
    assert 0 < config.train.k <= config.train.width
    config.corpus.root = BuildConfig.model_fields["corpus"].annotation.model_fields["root"].default  # type: ignore[union-attr]
    again = BuildConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    assert again == config.model_copy(update={"source": again.source}), "written again it is another configuration"
