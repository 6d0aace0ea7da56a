"""The model server behind ``ask`` and ``chat``: one that is running already, or one of our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from langchain_openai import ChatOpenAI
from openai import DefaultAsyncHttpxClient
from pydantic import SecretStr

from sae_runtime.catalog.location import CatalogLocation
from sae_runtime.errors import ServerError
from sae_runtime.logs import LogFormat
from sae_runtime.models import resolve_model
from sae_runtime.progress import console
from sae_runtime.serving import ModelServer, ServerOptions, reads_prompts, served_model
from sae_runtime.serving.server import DEFAULT_PORT

_NO_KEY = "none"  # ChatOpenAI insists on a key; a server without one ignores it


@dataclass(frozen=True)
class Backend:
    """A served model: the server's root URL and the name to ask for."""

    url: str
    model: str
    api_key: str | None = None

    def chat_model(self, *, max_tokens: int, temperature: float = 0.0) -> ChatOpenAI:
        """A LangChain chat model that talks to the server."""
        return ChatOpenAI(
            base_url=f"{self.url}/v1",
            api_key=SecretStr(self.api_key or _NO_KEY),
            model=self.model,
            temperature=temperature,
            max_completion_tokens=max_tokens,
            timeout=300,
            # Otherwise all models of one address share a client, also those of pages whose event loops differ.
            http_async_client=DefaultAsyncHttpxClient(),
            stream_usage=True,
            stream_chunk_timeout=None,  # with many users the first chunk may be late; `timeout` bounds it
        )


@contextmanager
def open_backend(
    model: str,
    *,
    url: str | None = None,
    artefacts: Path | None = None,
    catalog: CatalogLocation | None = None,
    log_format: LogFormat = "text",
) -> Iterator[Backend]:
    """Use the server at ``url``, or one on the default port that serves ``model``, or start one for the block.

    Raises:
        ServerError: nothing answers at ``url``, or it serves another model, or no server can be started.
    """
    name = resolve_model(model).name
    key = os.environ.get("VLLM_API_KEY")
    address = (url or f"http://127.0.0.1:{DEFAULT_PORT}").rstrip("/").removesuffix("/v1")
    # A server found by chance may hold other artefacts than the ones asked for; one named by the user is taken as is.
    found = served_model(address, key) if url is not None or (artefacts or catalog) is None else None
    if found == name and (url is not None or reads_prompts(address, key)):
        yield Backend(address, name, key)
        return
    if url is not None:
        what = f"serves '{found}', not '{name}'" if found else "does not answer"
        raise ServerError(f"The server at {url} {what}.", f"Start one with `sensecheck serve --model {model}`.")
    options = ServerOptions(port=0, artefacts=artefacts, catalog=catalog, api_key=key, log_format=log_format)
    with start_with_progress(model, options) as server:
        yield Backend(server.url, server.model, key)


def start_with_progress(model: str, options: ServerOptions) -> ModelServer:
    """Start a server and show its progress."""
    began = monotonic()
    with console.status(f"starting vLLM with {model} ...") as status:
        server = ModelServer.start(
            model,
            options,
            tick=lambda line: status.update(
                f"starting vLLM with {model}: {monotonic() - began:.0f} s  [dim]{line[-90:].replace('[', '(')}[/]"
            ),
        )
    console.print(f"vLLM serves {server.model} on {server.url} (log: {server.log})")
    return server
