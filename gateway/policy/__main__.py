"""Prints the JSON Schema of a policy document: `python -m gateway.policy > policies/schema.json`."""

import json
import sys

from . import json_schema

json.dump(json_schema(), sys.stdout, indent=2)
sys.stdout.write("\n")
