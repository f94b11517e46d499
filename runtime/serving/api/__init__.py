"""The wire: fields of requests, answers in one piece, streams, log-probabilities."""
