"""Any JSON Schema: what its masks allow is valid, or it is refused."""

import json
import random

import jsonschema_rs
from hypothesis import example, given, settings, strategies as st

from tests.grammars import TOY, write
from tests.lanes import examples
from tests.schemas import random_schema
from worker_orcd.engine.grammars.compiler import Compiler, GrammarFault
from worker_orcd.protocol.messages import Constraint

COMPILER = Compiler(TOY)


@settings(max_examples=examples(25))
@given(seed=st.integers(0, 2**32))
@example(seed=0)
def test_whatever_a_schemas_masks_allow_is_valid(seed: int) -> None:
    """Random tokens, without a model."""
    rng = random.Random(seed)
    schema = random_schema(rng)
    constraint = Constraint("json_schema", json.dumps(schema))
    written, refused = None, ""
    try:
        written = write(COMPILER.compile(constraint), rng)
    except GrammarFault as fault:
        refused = str(fault)
    assert refused.isprintable()
    if written is not None:
        jsonschema_rs.validator_for(schema, validate_formats=True).validate(json.loads(written))
