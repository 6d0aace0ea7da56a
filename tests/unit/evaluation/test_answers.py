"""Asking a server: what is sent, what is kept, what happens when it fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sae_runtime.errors import ServerError
from sae_runtime.evaluation.answers import Answers, Question


class Served:
    """A server that speaks the parts of vLLM's API that are used; it counts and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.status = 200
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                served.asked.append(body)
                reply = json.dumps(served.reply(body)).encode()
                self.send_response(served.status)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *args: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @staticmethod
    def reply(body: dict[str, Any]) -> dict[str, Any]:
        top = [{"token": " B", "logprob": -0.25}, {"token": "A", "logprob": -1.5}, {"token": "A ", "logprob": -3.0}]
        prompt = [{"1": {"logprob": -9.0, "decoded_token": " is"}}, {"2": {"logprob": -0.5, "decoded_token": " 1"}},
                  {"3": {"logprob": -0.25, "decoded_token": "2"}}]  # fmt: skip
        choice = {"message": {"content": "The answer is 12."}, "logprobs": {"content": [{"top_logprobs": top}]}}
        return {"choices": [choice], "prompt_logprobs": prompt}


@pytest.fixture
def served() -> Iterator[Served]:
    server = Served()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_choices_are_scored_by_the_first_token_and_absent_letters_lie_below_all(served: Served, tmp_path: Path) -> None:
    (answer,) = Answers(served.url, "m", tmp_path / "a.jsonl").ask([Question.of("?", options=3)], "t")
    assert answer["scores"] == [-1.5, -0.25, -4.0]
    assert {k: served.asked[0][k] for k in ("model", "max_tokens", "top_logprobs", "temperature")} == {
        "model": "m", "max_tokens": 1, "top_logprobs": 20, "temperature": 0,
    }  # fmt: skip


def test_numbers_come_with_the_likelihood_of_the_right_one(served: Served, tmp_path: Path) -> None:
    (answer,) = Answers(served.url, "m", tmp_path / "a.jsonl").ask([Question.of("?", gold="12", max_tokens=9)], "t")
    assert answer == {"text": "The answer is 12.", "loglik": -0.75}
    assert served.asked[1]["messages"][-1] == {"role": "assistant", "content": "The answer is 12"}


def test_endings_are_scored_by_their_own_likelihood(served: Served, tmp_path: Path) -> None:
    question = Question.of("?", opening='Here "x" means:', endings=("12", "2"))
    (answer,) = Answers(served.url, "m", tmp_path / "a.jsonl").ask([question], "t")
    assert answer["scores"] == [-0.75, -0.25]
    assert [body["messages"][-1]["content"] for body in served.asked] == ['Here "x" means: 12', 'Here "x" means: 2']


def test_a_run_that_was_stopped_asks_only_what_is_missing(served: Served, tmp_path: Path) -> None:
    cache = tmp_path / "a.jsonl"
    questions = [Question.of(f"{n}?", options=2) for n in range(5)]
    first = Answers(served.url, "m", cache).ask(questions[:3], "t")
    cache.write_text(cache.read_text("utf-8") + '{"key": "half a li', "utf-8")  # killed while it wrote
    again = Answers(served.url, "m", cache).ask([*questions, questions[0]], "t")
    assert len(served.asked) == 5
    assert again[:3] == first and again[-1] == first[0]
    assert "0?" not in cache.read_text("utf-8")
    assert len(Answers("http://127.0.0.1:9", "m", cache).ask(questions[:3], "t")) == 3


def test_another_model_is_asked_anew(served: Served, tmp_path: Path) -> None:
    for model in ("m", "n"):
        Answers(served.url, model, tmp_path / "a.jsonl").ask([Question.of("?", options=2)], "t")
    assert len(served.asked) == 2


def test_a_refusal_is_an_error_that_quotes_it(served: Served, tmp_path: Path) -> None:
    served.status = 404
    with pytest.raises(ServerError, match=r"refused a question \(404\)"):
        Answers(served.url, "m", tmp_path / "a.jsonl").ask([Question.of("?", options=2)], "t")


def test_a_server_that_is_gone_is_an_error_that_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="the run resumes"):
        Answers("http://127.0.0.1:9", "m", tmp_path / "a.jsonl").ask([Question.of("?", options=2)], "t")
