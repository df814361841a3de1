"""LiteRT on the bytes of a model, for tests: integers in, integers out."""

import numpy as np
from needs import needs

interpreter = needs("ai_edge_litert.interpreter")


def run(model: bytes, x: np.ndarray) -> np.ndarray:
    """The model's one output for its one input, both int8."""
    session = interpreter.Interpreter(model_content=model, num_threads=1)
    session.allocate_tensors()
    session.set_tensor(session.get_input_details()[0]["index"], x)
    session.invoke()
    return session.get_tensor(session.get_output_details()[0]["index"])
