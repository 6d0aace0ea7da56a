"""LangChain's own integration tests of chat models, on the annotated model around the served small model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from middleware import SAEAnnotator
from middleware.chat_model import AnnotatedChatModel
from sae_runtime.serving import ModelServer

pytestmark = [
    pytest.mark.server,
    # The suite also tests the newest event stream, which LangChain calls beta.
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
]


class AnnotatedOpenAI(AnnotatedChatModel):
    """The suite makes models from parameters; all but the annotator are the wrapped model's."""

    def __init__(self, annotator: SAEAnnotator, **params: Any) -> None:
        super().__init__(model=ChatOpenAI(**params), annotator=annotator)


class TestAnnotatedChatModel(ChatModelIntegrationTests):
    served: ModelServer
    annotator: SAEAnnotator
    client: httpx.AsyncClient

    @pytest.fixture(autouse=True)
    async def _connect(self, server: ModelServer) -> AsyncIterator[None]:
        # Every prompt is really read: a reading that fails is an error of the test.
        self.served = server
        self.annotator = SAEAnnotator.from_url(server.url, domain="biology", on_error="raise", deadline=60, grace=None)
        async with httpx.AsyncClient() as self.client:  # LangChain's own outlives the event loop of a test
            yield
        assert self.annotator.stats.bypassed == {}
        self.annotator.source.close()
        await self.annotator.source.aclose()

    @pytest.fixture
    def vcr(self) -> None:
        """Nothing is recorded; the suite skips the one test that would use it (and needs no vcrpy for that)."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return AnnotatedOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "annotator": self.annotator,
            "model": self.served.model,
            "base_url": f"{self.served.url}/v1",
            "api_key": "none",
            "http_async_client": self.client,
            "temperature": 0,
            "max_tokens": 32,
            "timeout": 120,
            "stream_usage": True,  # off by default for servers other than OpenAI's
        }

    @property
    def model_override_value(self) -> str:
        return self.served.model  # the server has no other

    # What a model of 135 million parameters cannot do. It reads no images, audio or PDF either; the suite expects none.

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_tool_choice(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False


def test_the_note_of_a_misread_word_reaches_the_served_model(server: ModelServer) -> None:
    annotator = SAEAnnotator.from_url(server.url, domain="biology", on_error="raise", deadline=60, grace=None)
    params = {
        "model": server.model,
        "base_url": f"{server.url}/v1",
        "api_key": "none",
        "temperature": 0,
        "max_tokens": 16,
    }
    model = AnnotatedOpenAI(annotator=annotator, **params)
    prompt = "How often should I clean my mouse?"
    noted = annotator.annotate(prompt)
    assert noted.notes
    answer, expected, plain = model.invoke(prompt), model.model.invoke(noted.messages), model.model.invoke(prompt)
    assert answer.content == expected.content
    assert answer.usage_metadata["input_tokens"] == expected.usage_metadata["input_tokens"]
    assert answer.usage_metadata["input_tokens"] > plain.usage_metadata["input_tokens"]
    assert "".join(str(chunk.content) for chunk in model.stream(prompt)) == answer.content
    annotator.source.close()
