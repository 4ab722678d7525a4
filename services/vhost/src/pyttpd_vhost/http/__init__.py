"""The vhost's HTTP core: requests in, responses out, one connection at a time.

From the bottom up: `chunked` and `response` know bytes only; `engine` and `llhttp` turn one head into a
`Request`; `stream` owns the socket; `body` reads a request's body; `exchange` writes one response;
`connection` has the states and the deadlines.
"""
