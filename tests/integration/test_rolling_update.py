"""A catalog is replaced behind a proxy while clients ask all the time: nobody is turned away, no reading is a mixture.

With small replicas of a tiny model; the same with vLLM is in test_vllm_replicas.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.making import eventually, make_artefacts
from haproxy import haproxy
from rolling import FIRST, SECOND, Traffic, both_take_part, check, fingerprint, inspect, roll_out
from small_replica import SmallReplica
from tiny_models import make_model

pytestmark = pytest.mark.proxy

THIRD = "Third."
BANKS: Any = [{"role": "user", "content": "We sat on the bank of the river, and then on the other bank."}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "llama", "llama")


@pytest.fixture
def artefacts(tiny: Path, tmp_path: Path) -> Path:
    """The folder that all replicas share."""
    return make_artefacts(tmp_path / "artefacts", tiny, note=FIRST)


@pytest.fixture
def replicas(tiny: Path, artefacts: Path, tmp_path: Path) -> Iterator[dict[str, SmallReplica]]:
    found = {name: SmallReplica(tiny, artefacts, tmp_path / "home") for name in ("one", "two")}
    yield found
    for replica in found.values():
        replica.stop()


def test_replicas_take_over_a_new_catalog_and_restart_for_a_new_dictionary(
    tiny: Path, artefacts: Path, replicas: dict[str, SmallReplica], tmp_path: Path
) -> None:
    second = make_artefacts(tmp_path / "second", tiny, note=SECOND)
    other = make_artefacts(tmp_path / "other", tiny, note=THIRD, sae_seed=1)
    notes = {fingerprint(second): SECOND, fingerprint(other): THIRD}
    urls = {name: replica.url for name, replica in replicas.items()}
    with haproxy(urls) as proxy:
        with Traffic(proxy.url, inspect(BANKS), inspect(BANKS, domain="river")) as traffic:
            roll_out(urls, artefacts, second, traffic)
        with Traffic(proxy.url, inspect(BANKS), inspect(BANKS, domain="river")) as traffic:
            traffic.more()
            proxy.drain("one")
            eventually(lambda: proxy.sessions("one") == 0)
            restart(replicas["one"], other)
            proxy.ready("one")
            eventually(lambda: proxy.up("one"))
            traffic.more()
        assert fingerprint(second) in check(traffic.answers, notes)
        with Traffic(proxy.url, inspect(BANKS), inspect(BANKS, domain="river"), again=True) as traffic:
            traffic.more()
            restart(replicas["two"], other)  # nobody told the proxy
            traffic.more()  # those that had begun
            assert set(check(traffic.more(), notes)) == {fingerprint(other)}
            eventually(lambda: proxy.up("two"))
            both_take_part(urls)
        assert set(check(traffic.answers, notes)) == set(notes)


def restart(replica: SmallReplica, artefacts: Path) -> None:
    replica.stop()
    replica.begin(artefacts)
