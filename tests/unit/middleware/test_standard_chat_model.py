"""LangChain's own unit tests of chat models, on the annotated model around a real class that is never called."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.unit_tests import ChatModelUnitTests

from middleware import SAEAnnotator
from middleware.chat_model import AnnotatedChatModel
from middleware.testing import FakeInspector


class AnnotatedOpenAI(AnnotatedChatModel):
    """The suite makes models from parameters; these are the wrapped model's."""

    def __init__(self, **params: Any) -> None:
        super().__init__(model=ChatOpenAI(**params), annotator=SAEAnnotator(source=FakeInspector()))


class TestAnnotatedChatModel(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return AnnotatedOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "gpt-4.1", "api_key": "none"}


def test_the_parameters_of_the_suite_reach_the_wrapped_model() -> None:
    model = AnnotatedOpenAI(model="gpt-4.1", api_key="none", temperature=0, max_tokens=100, stop=["x"])
    assert isinstance(model.model, ChatOpenAI)
    assert (model.model.temperature, model.model.max_tokens, model.model.stop) == (0, 100, ["x"])
    assert model._get_ls_params() == {
        "ls_provider": "openai", "ls_model_name": "gpt-4.1", "ls_model_type": "chat", "ls_temperature": 0.0,
        "ls_max_tokens": 100, "ls_stop": ["x"],
    }  # fmt: skip
