"""What `helm test` asks the service: whether it is ready, and for a slate. Argument: its address."""

import json
import os
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

address, key = sys.argv[1], os.environ.get("API_KEY")

with urlopen(f"{address}/health/ready", timeout=10) as response:
    print("ready:", response.read().decode())

headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
try:
    with urlopen(Request(f"{address}/suggest", b'{"limit": 3}', headers), timeout=10) as response:
        slate = json.load(response)
    print("slate:", json.dumps(slate))
    sys.exit(0 if slate["propositions"] else "the slate is empty")
except HTTPError as error:
    print("answer:", error.code, error.read().decode())
    if key or error.code != 401:
        sys.exit("a slate was asked for in vain")
    print("nobody is let in without a key; set test.keySecret to ask for a slate with one")
