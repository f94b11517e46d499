"""The demo bundle with a template that has tools, and what clients ask it for."""

from .chat_bundles import add_chat
from .fake_engine import TOOL_TEMPLATE

SCHEMA = {
    "type": "object",
    "properties": {"sorted": {"type": "boolean"}, "order": {"enum": ["up", "down"]}},
    "required": ["sorted", "order"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "sort", "description": "Sorts", "parameters": SCHEMA}}]


def add_tools(demo_bundle, folder):
    """A copy of the bundle in a folder, called "demo"."""
    tokens = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return add_chat(demo_bundle, folder / "demo", TOOL_TEMPLATE, **tokens)
