"""What clients get: answers in one piece and as they come, models, and what becomes of their fields."""

import json

from support.http_server import MESSAGES, chat, complete, error, events


def test_an_answer_in_one_piece(client, engine):
    found = chat(client, model="alias", n=2, user="me", temperature=None).json()
    assert found["object"] == "chat.completion"
    assert found["model"] == "alias"
    assert [choice["message"]["content"] for choice in found["choices"]] == ["Hello.", "Hello."]
    assert [choice["finish_reason"] for choice in found["choices"]] == ["stop", "stop"]
    prompt = len(engine.chat_encoder.encode(MESSAGES))
    assert found["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 12,
        "total_tokens": prompt + 12,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"accepted_prediction_tokens": 8},
    }


def test_chunks_begin_with_the_role_and_end_with_the_reason_and_the_usage(client):
    options = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    response = chat(client, **options)
    assert response.headers["content-type"].startswith("text/event-stream")
    first, *pieces, last, usage = events(response)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert first["prompt_token_ids"]
    assert [piece["choices"][0]["delta"]["content"] for piece in pieces] == ["Hel", "lo."]
    assert [len(piece["choices"][0]["token_ids"]) for piece in pieces] == [3, 3]
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert {one["object"] for one in (first, *pieces, last, usage)} == {"chat.completion.chunk"}
    assert {one["id"] for one in (first, *pieces, last, usage)} == {first["id"]}
    assert all(one["usage"] is None for one in (first, *pieces, last))
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 6
    assert all("usage" not in one for one in events(chat(client, stream=True)))


def test_samples_are_streamed_side_by_side(client):
    found = events(chat(client, stream=True, n=3))
    for index in range(3):
        mine = [one["choices"][0] for one in found if one["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content") or "" for choice in mine) == "Hello."
        assert mine[-1]["finish_reason"] == "stop"


def test_completions_take_texts_and_token_ids_and_echo_them(client):
    found = complete(client, prompt=["ab", "c"], n=2, echo=True).json()
    assert [choice["text"] for choice in found["choices"]] == ["abHello."] * 2 + ["cHello."] * 2
    assert found["usage"]["prompt_tokens"] == 3
    assert complete(client, prompt=[[70, 71], [72]], echo=True).json()["choices"][1]["text"] == "fHello."
    alone = complete(client, echo=True, max_tokens=0).json()
    assert alone["choices"][0]["text"] == "Hi"
    assert alone["usage"]["completion_tokens"] == 0
    streamed = events(complete(client, stream=True, echo=True))
    assert "".join(one["choices"][0]["text"] for one in streamed) == "HiHello."
    assert streamed[-1]["choices"][0]["finish_reason"] == "stop"


def test_fields_reach_the_engine(client, engine):
    fields = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2, "stop_token_ids": [9]}
    fields |= {"presence_penalty": -1, "frequency_penalty": 0.5, "logit_bias": {"7": -100}, "seed": -1}
    fields |= {"stop": "x", "max_completion_tokens": 9, "temperature": 0.5, "top_p": 0.9, "deadline_s": 7}
    assert chat(client, **fields, logprobs=True, top_logprobs=3).status_code == 200
    sent = engine.submitted[-1]
    assert sent.deadline_s == 7
    params = sent.handle.params
    for name in (
        "top_k",
        "min_p",
        "repetition_penalty",
        "min_tokens",
        "presence_penalty",
        "frequency_penalty",
    ):
        assert getattr(params, name) == fields[name], name
    assert dict(params.logit_bias) == {7: -100}
    assert (params.seed, params.max_new_tokens, params.stop) == (2**64 - 1, 9, ("x",))
    assert set(params.stop_token_ids) == {9, 1}  # and the token that ends a turn
    assert params.logprobs == 3
    assert chat(client).status_code == 200
    params = engine.submitted[-1].handle.params
    assert (params.temperature, params.max_new_tokens) == (1.0, 100)
    first = params.seed
    chat(client)
    assert engine.submitted[-1].handle.params.seed != first


def test_models_are_listed_under_all_their_names(client):
    found = client.get("/v1/models").json()
    assert [model["id"] for model in found["data"]] == ["model", "alias"]
    assert client.get("/v1/models/alias").json() == found["data"][1]
    assert found["data"][0]["max_model_len"] == 256
    assert error(client.get("/v1/models/a/b"), 404)["code"] == "model_not_found"
    assert error(client.get("/v1/nothing"), 404)
    assert error(client.get("/v1/chat/completions"), 405)


def test_formats_become_grammars(client, engine):
    def structured(**fields):
        assert chat(client, **fields).status_code == 200
        return engine.submitted[-1].handle.params.structured

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert json.loads(structured(response_format=form).json_schema).items() > schema.items()
    any_object = json.loads(structured(response_format={"type": "json_object"}).json_schema)
    assert any_object["type"] == "object"
    assert structured(response_format={"type": "text"}) is None
    assert structured(structured_outputs={"regex": "a+"}).regex == "a+"
    assert structured(structured_outputs={"choice": ["a", "b"]}).choice == ("a", "b")
    assert structured(structured_outputs={"grammar": 'start: "a"'}).lark == 'start: "a"'
    assert json.loads(structured(structured_outputs={"json": schema}).json_schema).items() > schema.items()
