"""One engine behind HTTP: limits, OpenAI's endpoints, metrics, a page, and other servers' ways in."""
