"""The vhost's HTTP core: requests in, responses out, one connection at a time.

From the bottom up: `chunked` and `response` know bytes only; `engine`, `llhttp` and `h11` turn one head into a
`Request`; `stream` owns the socket; `body` reads a request's body; `exchange` writes one response;
`connection` has the states and the deadlines.

Why the end of each message is where everybody thinks it is: docs/http.md, claim by claim.
"""
