"""What `helm test` runs: ask the Service for pages as a client would, and say what is wrong.

python ask.py CASES, a list of objects as JSON: {"address": HOST, "port": 80, "host": "blog.example", "want": "tenant"},
or a status to want.
"""

import http.client
import json
import sys
from typing import Any

#: What the listener says for a tenant that nobody knows, whose queue is full, or whose application doesn't run.
NOBODY = (421, 502, 503, 504)
#: A new release's Service may take a moment to find its pods.
PATIENCE = 10.0


def ask(case: dict[str, Any]) -> int:
    """Return the status of one request."""
    connection = http.client.HTTPConnection(case["address"], case["port"], timeout=PATIENCE)
    try:
        connection.request("GET", "/", headers={"Host": case["host"], "Connection": "close"})
        return connection.getresponse().status
    finally:
        connection.close()


def main(cases: list[dict[str, Any]]) -> int:
    """Print a line for each case; return how many went wrong."""
    wrong = 0
    for case in cases:
        try:
            status = ask(case)
            well = status == case["want"] if case["want"] != "tenant" else status not in NOBODY
            said = f"answered {status}"
        except (OSError, http.client.HTTPException) as error:
            well, said = False, f"no answer: {error}"
        wrong += not well
        print(f"{'ok' if well else 'WRONG'}: {case['host']} at {case['address']}:{case['port']}: {said}")
    return wrong


if __name__ == "__main__":
    sys.exit(min(1, main(json.loads(sys.argv[1]))))
