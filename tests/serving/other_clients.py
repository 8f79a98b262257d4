"""LangChain's and LlamaIndex's OpenAI classes against a running server: list the models, chat, stream, complete.

    PYTHON tests/serving/other_clients.py http://127.0.0.1:8000/v1 assistant

PYTHON has langchain-openai, llama-index-llms-openai and llama-index-llms-openai-like installed, which this project does
not need: tests/serving/test_other_clients.py runs this file by $AJUSTE_CLIENTS_PYTHON. It prints one JSON object: for
each client what it was told. An error ends it.
"""

import json
import sys


def by_langchain(url: str, model: str) -> dict[str, str]:
    """ChatOpenAI and OpenAI: invoked, streamed, batched, with log-probabilities and several choices."""
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
    from langchain_openai import ChatOpenAI, OpenAI

    how = {"base_url": url, "api_key": "none", "model": model, "temperature": 0, "max_tokens": 12}
    chat, text = ChatOpenAI(**how), OpenAI(**how)
    turns = [SystemMessage("Be brief."), HumanMessage("A film."), AIMessage("Yes."), HumanMessage("Is it good?")]
    first = chat.invoke(turns)
    logprobs = chat.bind(logprobs=True, top_logprobs=2).invoke(turns).response_metadata["logprobs"]["content"]
    choices = ChatOpenAI(**how, n=2).generate([turns]).generations[0]
    return {
        "chat": first.content, "streamed": "".join(chunk.content for chunk in chat.stream(turns)),
        "batched": chat.batch([turns, turns])[1].content, "choice": choices[1].text,
        "again": bool(chat.invoke([*turns, first, HumanMessage("And?")]).usage_metadata["output_tokens"]),
        "logprobs": len(logprobs), "text": text.invoke("A warm"), "text streamed": "".join(text.stream("A warm")),
        "models": sorted(one.id for one in chat.root_client.models.list()),
    }


def by_llamaindex(url: str, model: str) -> dict[str, str]:
    """OpenAILike, which takes any model's name: chat, streamed chat, completion. Its OpenAI is the same client."""
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    how = {"api_base": url, "api_key": "none", "model": model, "temperature": 0, "max_tokens": 12, "max_retries": 0,
           "context_window": 512}
    chat, text = OpenAILike(**how, is_chat_model=True), OpenAILike(**how, is_chat_model=False)
    turns = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="A film."),
             ChatMessage(role="assistant", content="Yes."), ChatMessage(role="user", content="Is it good?")]
    first = chat.chat(turns)
    again = chat.chat([*turns, first.message, ChatMessage(role="user", content="And?")])
    return {
        "chat": first.message.content, "streamed": "".join(part.delta or "" for part in chat.stream_chat(turns)),
        "again": bool(again.raw.usage.completion_tokens), "text": text.complete("A warm").text,
        "text streamed": "".join(part.delta or "" for part in text.stream_complete("A warm")),
        "models": sorted(one.id for one in chat._get_client().models.list()),
    }


if __name__ == "__main__":
    print(json.dumps({"langchain": by_langchain(*sys.argv[1:]), "llamaindex": by_llamaindex(*sys.argv[1:])}))
