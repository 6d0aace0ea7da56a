"""Who may reach the page, and the file of accounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_runtime.errors import InputError
from sae_runtime.serving import ServerOptions
from ui.cli.serve import read_accounts, run_serve
from ui.page.app import Door


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "example.org"])  # noqa: S104
def test_the_page_is_not_opened_to_the_network_without_accounts(host: str) -> None:
    with pytest.raises(InputError, match="--auth"):
        Door(7860, host).check()
    Door(7860, host, accounts=[("ada", "x")]).check()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_needs_none(host: str) -> None:
    Door(7860, host).check()


def test_a_model_is_not_served_to_the_network_without_a_key() -> None:
    with pytest.raises(InputError, match="--api-key"):
        run_serve("smollm2-135m-instruct", ServerOptions(host="0.0.0.0"))  # noqa: S104


def test_accounts_are_lines_of_user_and_password(tmp_path: Path) -> None:
    file = tmp_path / "accounts"
    file.write_text("# people\nada:pass:word\n\n bob:x \n")
    assert read_accounts(file) == [("ada", "pass:word"), ("bob", "x")]


@pytest.mark.parametrize("text", ["ada", "ada:", ":secret", "", "# nobody"])
def test_a_malformed_file_of_accounts_is_refused_without_telling_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "accounts"
    file.write_text(f"{text}\n")
    with pytest.raises(InputError) as caught:
        read_accounts(file)
    assert "secret" not in str(caught.value)


def test_an_absent_file_of_accounts_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_accounts(tmp_path / "none")
